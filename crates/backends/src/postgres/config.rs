//! The URL of a PostgreSQL database.

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use towpath_core::address::Address;
use towpath_core::{Error, Result};

/// The form of a URL, for errors.
const FORM: &str = "a PostgreSQL database is `postgres://USER:PASSWORD@HOST:PORT/NAME`, behind it \
    `?sslmode=disable` (the default) or `?sslmode=verify-full&sslrootcert=FILE`";

/// The parameter that selects one of several servers.
const TARGET: &str = "target_session_attrs";

/// TCP keepalive idle time.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The settings of a URL.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) postgres: tokio_postgres::Config,
    /// Authorities that may have signed the server's certificate besides those that the machine trusts.
    authorities: Option<String>,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let address = Address::split(url)?;
        let (mut rest, mut mode, mut authorities) = (Vec::new(), SslMode::Disable, None);
        for (name, value) in address.parameters() {
            match (name, value) {
                ("sslmode", "disable") => mode = SslMode::Disable,
                // TLS always verifies the server's identity.
                ("sslmode", "require" | "verify-ca" | "verify-full") => mode = SslMode::Require,
                ("sslmode", other) => {
                    return Err(Error::invalid(format!("`sslmode={other}`: {FORM}")));
                }
                ("sslrootcert", file) => authorities = Some(file.to_owned()),
                _ => rest.push(format!("{name}={value}")),
            }
        }
        // The client takes the first `@` as the end of the account.
        let account = address.account.map(|account| account.replace('@', "%40"));
        let account = account.map_or_else(String::new, |account| format!("{account}@"));
        let path = address.path.filter(|path| !path.is_empty());
        let path = path.map_or_else(String::new, |path| format!("/{path}"));
        let (hosts, rest_text) = (address.hosts, rest.join("&"));
        let parsed = format!("postgres://{account}{hosts}{path}?{rest_text}").parse();
        // The client's errors may quote the URL.
        let mut postgres: tokio_postgres::Config = parsed.map_err(|_| Error::invalid(FORM))?;
        if postgres.get_hosts().is_empty() || postgres.get_dbname().is_none() {
            return Err(Error::invalid(FORM));
        }
        postgres.ssl_mode(mode);
        let hosts = postgres.get_hosts().len();
        // The last host is tried also when those before it do not answer.
        postgres.connect_timeout(super::pool::CONNECT / u32::try_from(hosts).unwrap_or(1));
        if hosts > 1 && !rest.iter().any(|one| one.starts_with(TARGET)) {
            postgres.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if !rest.iter().any(|one| one.starts_with("keepalives")) {
            postgres.keepalives_idle(KEEPALIVE);
            postgres.keepalives_interval(KEEPALIVE / 3);
            postgres.keepalives_retries(3);
        }
        if postgres.get_application_name().is_none() {
            postgres.application_name("towpath");
        }
        Ok(Self {
            postgres,
            authorities,
        })
    }

    /// Its hosts and ports.
    pub(super) fn places(&self) -> String {
        let ports = self.postgres.get_ports();
        let hosts = self.postgres.get_hosts().iter().zip(0..);
        let places = hosts.map(|(host, number)| {
            let port = ports.get(number).or(ports.first()).unwrap_or(&5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(folder) => format!("{}:{port}", folder.display()),
            }
        });
        places.collect::<Vec<_>>().join(", ")
    }

    /// TLS settings, where it is used.
    pub(super) fn tls(&self) -> Result<MakeRustlsConnect> {
        // The first library to install a provider has chosen it.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let mut roots = RootCertStore::empty();
        if self.postgres.get_ssl_mode() != SslMode::Disable {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if let Some(file) = &self.authorities {
            let unreadable = |error| {
                let text = format!("the certificates of `{file}` (`sslrootcert`) cannot be read");
                Error::invalid(text).with_source(error)
            };
            for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
                let certificate = certificate.map_err(unreadable)?;
                roots.add_parsable_certificates([certificate]);
            }
        }
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::TargetSessionAttrs;

    use super::Config;

    #[test]
    fn a_url_names_host_and_database() {
        for wrong in [
            "postgres:",
            "postgres://",
            "postgres://host",
            "postgres://host/name?sslmode=perhaps",
            "postgres://host/name?unknown=1",
            "postgres://host:x/name",
        ] {
            assert!(Config::parse(wrong).is_err(), "{wrong}");
        }
        let config = Config::parse("postgres://me:secret@host:5433/name?sslmode=disable").unwrap();
        assert_eq!(config.postgres.get_ports(), [5433]);
        assert_eq!(config.places(), "host:5433");
    }

    #[test]
    fn of_two_hosts_the_one_that_accepts_changes_is_meant() {
        let config = Config::parse("postgres://me@one:5433,two:5434/name").unwrap();
        let target = |config: &Config| config.postgres.get_target_session_attrs();
        assert_eq!(target(&config), TargetSessionAttrs::ReadWrite);
        assert_eq!(config.places(), "one:5433, two:5434");
        let any = "postgres://me@one,two/name?target_session_attrs=any";
        assert_eq!(
            target(&Config::parse(any).unwrap()),
            TargetSessionAttrs::Any
        );
    }

    #[test]
    fn passwords_are_read_whole() {
        for url in ["postgres://me:a@b@host/n", "postgres://me:a%40b@host/n"] {
            let config = Config::parse(url).unwrap();
            assert_eq!(config.postgres.get_password(), Some(&b"a@b"[..]), "{url}");
        }
        for url in [
            "postgres://u:p#w@h/d",
            "postgres://u:p/w@h/d",
            "postgres://u:p?w@h/d",
        ] {
            let error = Config::parse(url).unwrap_err().to_string();
            assert!(error.contains("percent-encoded"), "{url}: {error}");
        }
    }
}
