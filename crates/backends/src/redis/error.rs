//! Errors of Redis and its client as our errors.
//!
//! A refusal of the server concerns the server, its data or its settings, not the caller's request: it is
//! `Unavailable`, with a next step. Script texts do not leave this module.

use std::time::Duration;

use redis::{Arg, Cmd, ErrorKind as Kind, RedisError};
use towpath_core::Error;

/// Retry time for a full server.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The error of a connection.
pub(super) fn of_connection(server: &str, error: RedisError) -> Error {
    of_key(server, "", error)
}

/// The error of a command, classified by the caller's next step.
pub(super) fn of_command(server: &str, cmd: &Cmd, error: RedisError) -> Error {
    let mut args = cmd.args_iter();
    let at = match args.next() {
        // The first key, after the digest and the number of keys.
        Some(Arg::Simple(b"EVALSHA")) => 2,
        _ => 0,
    };
    let key = match args.nth(at) {
        Some(Arg::Simple(key)) => String::from_utf8_lossy(key),
        _ => "".into(),
    };
    of_key(server, &key, error)
}

fn of_key(server: &str, key: &str, error: RedisError) -> Error {
    let text = error.to_string();
    if let Some(reason) = refusal(&text) {
        return Error::unavailable(format!("redis at `{server}`: {reason}"));
    }
    let matches = |word: &str| error.code() == Some(word) || text.contains(word);
    if matches("OOM") {
        return Error::overloaded(
            format!("the memory of redis at `{server}` is full"),
            RETRY_AFTER,
        );
    }
    if matches("NOGROUP") {
        let what = error.detail().unwrap_or("it does not exist");
        return Error::not_found(without_script(what).to_owned());
    }
    let what = match error.kind() {
        Kind::Io | Kind::Parse => {
            return Error::unavailable(format!("redis at `{server}` did not answer"))
                .with_source(error);
        }
        Kind::AuthenticationFailed => "did not accept the user or password".to_owned(),
        _ if matches("NOAUTH") || matches("WRONGPASS") => {
            "did not accept the user or password".to_owned()
        }
        _ if matches("WRONGTYPE") => {
            format!("key `{key}` holds another type of value; rename or delete it")
        }
        _ if is_denied(&text) => format!(
            "the user has no permission for a command on key `{key}`: {}; docs/reference/redis.md lists the permissions",
            without_script(error.detail().unwrap_or(&text))
        ),
        _ if matches("LOADING") => "is loading its data; it answers when that is done".to_owned(),
        _ if matches("READONLY") => {
            "is a replica and read-only; point the URL to the primary, or use redis+sentinel"
                .to_owned()
        }
        _ if matches("NOREPLICAS") => {
            "has fewer replicas than `min-replicas-to-write` and refuses writes; start replicas or lower it"
                .to_owned()
        }
        _ if matches("MISCONF") => {
            "cannot save its data and refuses writes; see its log, most often the disk is full"
                .to_owned()
        }
        _ if matches("BUSY") => {
            "is busy with a script of another client; `SCRIPT KILL` ends it".to_owned()
        }
        _ if matches("MASTERDOWN") => "is a replica that lost its primary".to_owned(),
        _ if matches("CLUSTERDOWN") => "is in a cluster that is down; see `CLUSTER INFO`".to_owned(),
        _ if is_moving(&error) => "is moving the slot of the key; try again".to_owned(),
        _ => format!("refused the command: {}", without_script(&text)),
    };
    Error::unavailable(format!("redis at `{server}` {what}"))
}

/// A refusal of `guard_lib.lua` as a sentence.
fn refusal(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("[[")?;
    let (inner, _) = rest.rsplit_once("]]")?;
    let (code, rest) = inner.split_once(' ')?;
    Some(match code {
        "WRONGTYPE" => {
            let (found, rest) = rest.split_once(' ')?;
            let (wanted, key) = rest.split_once(' ')?;
            format!("key `{key}` holds a {found}, and a {wanted} is needed; rename or delete it")
        }
        "NOPERM" => {
            // A command with a subcommand is two words; keys may have spaces.
            let (command, key) = split_command(rest)?;
            format!(
                "the user may not run `{command}` on key `{key}`; grant it, docs/reference/redis.md lists the permissions"
            )
        }
        "NOTANUMBER" => {
            let (field, key) = rest.split_once(' ')?;
            format!("field `{field}` of key `{key}` is not a number; `HDEL` it")
        }
        "EXHAUSTED" => {
            format!(
                "the ids of stream `{rest}` are exhausted; copy the entries you need and delete it"
            )
        }
        _ => return None,
    })
}

fn split_command(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.split_once(' ')?;
    if matches!(name, "XGROUP" | "XINFO") {
        let (sub, key) = rest.split_once(' ')?;
        return Some((&text[..name.len() + 1 + sub.len()], key));
    }
    Some((name, rest))
}

/// Whether a permission is missing, by the texts of commands and scripts.
fn is_denied(text: &str) -> bool {
    text.contains("NOPERM")
        || text.contains("NoPerm")
        || text.contains("The user executing the script can't")
}

/// The server's text without the script position.
fn without_script(text: &str) -> &str {
    let text = text.split(" script: ").next().unwrap_or(text);
    text.rsplit_once("user_script:")
        .and_then(|(_, rest)| rest.split_once(": "))
        .map_or(text, |(_, rest)| rest)
}

/// Whether the server is moving the key's slot to another one, and did nothing.
pub(super) fn is_moving(error: &RedisError) -> bool {
    matches!(error.code(), Some("ASK" | "TRYAGAIN"))
        || error
            .to_string()
            .contains("attempted to access a non local key")
}

/// Whether to reconnect: the connection is broken, or leads to the wrong server now.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        Kind::Io | Kind::Parse | Kind::AuthenticationFailed
    ) || matches!(error.code(), Some("READONLY" | "NOAUTH" | "MASTERDOWN"))
}
