//! HTTP clients: all of them trust what the system trusts, and none goes through a proxy.

use std::sync::LazyLock;

use reqwest::{Client, ClientBuilder};
use rustls::{ClientConfig, RootCertStore};

use super::tls;

/// Read once. A system without certificates of authorities, as small images are, has clients all the same: they ask
/// plain HTTP, and refuse every server that speaks TLS.
static TLS: LazyLock<ClientConfig> = LazyLock::new(|| {
    tls::install_provider();
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::debug!(%error, "certificates of the system");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let config = ClientConfig::builder().with_root_certificates(roots);
    config.with_no_client_auth()
});

/// Begins a client.
pub fn client() -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(TLS.clone())
}
