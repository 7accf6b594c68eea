//! HTTP clients: all of them trust the system's certificates, and none uses a proxy.

use std::path::Path;
use std::sync::LazyLock;

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use towpath_core::{Error, Result};

use super::certificate;

/// Read once. A system without certificates of authorities, as small images are, has clients all the same: they ask
/// plain HTTP, and refuse every server that speaks TLS.
static ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!(%error, "system certificate not loaded");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
});

static TLS: LazyLock<ClientConfig> = LazyLock::new(|| trusting(ROOTS.clone()));

/// Begins a client.
pub fn client() -> ClientBuilder {
    client_of(TLS.clone())
}

/// Begins a client with this configuration. It follows no redirect: the headers of its requests hold keys.
pub fn client_of(tls: ClientConfig) -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .tls_backend_preconfigured(tls)
}

/// The configuration that also trusts the authorities in a PEM file.
///
/// # Errors
/// `Invalid` when the file cannot be read or holds no certificate.
pub fn trusting_also(file: &Path) -> Result<ClientConfig> {
    roots_and(file).map(trusting)
}

/// The configuration of a client that shows this certificate, and also trusts the authorities in `ca`; all PEM files.
///
/// # Errors
/// `Invalid` when a file cannot be read, or the key is not that of the certificate.
pub fn with_identity(ca: Option<&Path>, certificate: &Path, key: &Path) -> Result<ClientConfig> {
    let roots = match ca {
        Some(ca) => roots_and(ca)?,
        None => ROOTS.clone(),
    };
    let (chain, key) = certificate::chain_and_key(certificate, key)?;
    certificate::install_provider();
    let config = ClientConfig::builder().with_root_certificates(roots);
    config.with_client_auth_cert(chain, key).map_err(|error| {
        let file = certificate.display();
        Error::invalid(format!("`{file}` does not match its private key")).with_source(error)
    })
}

/// The authorities that the system trusts, and those in a PEM file.
fn roots_and(file: &Path) -> Result<RootCertStore> {
    let wrong = |reason: String| {
        let file = file.display();
        Error::invalid(format!(
            "`{file}` must be a PEM file with certificates of authorities: {reason}"
        ))
    };
    let found = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
    let mut roots = ROOTS.clone();
    let before = roots.len();
    for certificate in found {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(error.to_string()))?;
    }
    if roots.len() == before {
        return Err(wrong("it holds none".to_owned()));
    }
    Ok(roots)
}

fn trusting(roots: RootCertStore) -> ClientConfig {
    certificate::install_provider();
    let config = ClientConfig::builder().with_root_certificates(roots);
    config.with_no_client_auth()
}
