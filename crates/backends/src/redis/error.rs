//! What Redis and its client say, in our words.

use std::time::Duration;

use redis::{ErrorKind as Kind, RedisError};
use towpath_core::Error;

/// When a producer may come back that met a full server.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The error of a command, split by what the caller can do.
pub(super) fn of_command(server: &str, error: RedisError) -> Error {
    let text = error.to_string();
    let says = |code: &str| error.code() == Some(code) || text.contains(code);
    if says("OOM") {
        return Error::overloaded(
            format!("the memory of redis at `{server}` is full"),
            RETRY_AFTER,
        )
        .with_source(error);
    }
    if says("WRONGTYPE") {
        return Error::invalid("the key holds another kind of value").with_source(error);
    }
    if says("NOGROUP") {
        let what = error.detail().unwrap_or("it is not there").to_owned();
        return Error::not_found(what);
    }
    if says("NOPERM") {
        return Error::invalid(format!(
            "redis at `{server}` does not permit this user what is needed; docs/reference/redis.md lists it"
        ))
        .with_source(error);
    }
    let what = match error.kind() {
        Kind::Io | Kind::Parse => "did not answer",
        Kind::AuthenticationFailed => "did not accept the user or password",
        _ if says("NOAUTH") || says("WRONGPASS") => "did not accept the user or password",
        _ if says("LOADING") => "is loading its data",
        _ if says("READONLY") => "is a replica now",
        _ => "refused the command",
    };
    Error::unavailable(format!("redis at `{server}` {what}")).with_source(error)
}

/// Whether the connection must be made anew: it is broken, or leads to a server that is not the right one any more.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        Kind::Io | Kind::Parse | Kind::AuthenticationFailed
    ) || matches!(error.code(), Some("READONLY" | "NOAUTH" | "MASTERDOWN"))
}
