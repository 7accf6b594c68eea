//! What a URL says about a PostgreSQL database.

use tokio_postgres::config::SslMode;
use towpath_core::{Error, Result};

/// The settings of a URL.
pub(super) fn parse(url: &str) -> Result<tokio_postgres::Config> {
    let mut config: tokio_postgres::Config = url.parse().map_err(|error| {
        Error::invalid("a PostgreSQL database is `postgres://USER:PASSWORD@HOST:PORT/NAME`")
            .with_source(error)
    })?;
    if config.get_hosts().is_empty() || config.get_dbname().is_none() {
        return Err(Error::invalid(
            "the URL of a PostgreSQL database names a host and a database",
        ));
    }
    if config.get_ssl_mode() == SslMode::Require {
        return Err(Error::unsupported(
            "this build does not speak TLS to PostgreSQL: use `sslmode=disable` on a network of your own, or a local \
             proxy such as pgbouncer that speaks it",
        ));
    }
    config.connect_timeout(super::CONNECT);
    if config.get_application_name().is_none() {
        config.application_name("towpath");
    }
    Ok(config)
}

/// The URL with its password replaced by `***`.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((user, place)) if user.contains(':') => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:***@{place}")
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, shown};

    #[test]
    fn a_url_names_host_and_database() {
        for wrong in [
            "postgres:",
            "postgres://",
            "postgres://host",
            "postgres://host/name?sslmode=perhaps",
            "postgres://host/name?sslmode=require",
            "postgres://host:x/name",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let config = parse("postgres://me:secret@host:5433/name?sslmode=disable").unwrap();
        assert_eq!(config.get_ports(), [5433]);
    }

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(
            shown("postgres://me:s:e@c@host/n"),
            "postgres://me:***@host/n"
        );
        assert_eq!(shown("postgres://me@host/n"), "postgres://me@host/n");
    }
}
