//! What a URL says about a PostgreSQL database.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use towpath_core::{Error, Result};

/// What is wrong with most URLs.
const FORM: &str = "a PostgreSQL database is `postgres://USER:PASSWORD@HOST:PORT/NAME`, behind it \
    `?sslmode=disable` (the default) or `?sslmode=verify-full&sslrootcert=FILE`";

/// The settings of a URL.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) postgres: tokio_postgres::Config,
    /// Authorities that may have signed the server's certificate besides those that the machine trusts.
    authorities: Option<String>,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (place, parameters) = url.split_once('?').unwrap_or((url, ""));
        let (mut rest, mut mode, mut authorities) = (Vec::new(), SslMode::Disable, None);
        for parameter in parameters.split('&').filter(|text| !text.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", "disable")) => mode = SslMode::Disable,
                // Whoever asks for TLS gets a server that is who it says.
                Some(("sslmode", "require" | "verify-ca" | "verify-full")) => {
                    mode = SslMode::Require;
                }
                Some(("sslmode", other)) => {
                    return Err(Error::invalid(format!("`sslmode={other}`: {FORM}")));
                }
                Some(("sslrootcert", file)) => authorities = Some(file.to_owned()),
                _ => rest.push(parameter),
            }
        }
        let parsed = format!("{place}?{}", rest.join("&")).parse();
        let mut postgres: tokio_postgres::Config =
            parsed.map_err(|error| Error::invalid(FORM).with_source(error))?;
        if postgres.get_hosts().is_empty() || postgres.get_dbname().is_none() {
            return Err(Error::invalid(FORM));
        }
        postgres.ssl_mode(mode);
        postgres.connect_timeout(super::CONNECT);
        if postgres.get_application_name().is_none() {
            postgres.application_name("towpath");
        }
        Ok(Self {
            postgres,
            authorities,
        })
    }

    /// How TLS is spoken, where it is.
    pub(super) fn tls(&self) -> Result<MakeRustlsConnect> {
        // Whoever came first has chosen the provider.
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
    use super::{Config, shown};

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
    }

    #[test]
    fn a_password_is_not_shown() {
        let shows = |url, expected| assert_eq!(shown(url), expected);
        shows("postgres://me:s:e@c@host/n", "postgres://me:***@host/n");
        shows("postgres://me@host/n", "postgres://me@host/n");
    }
}
