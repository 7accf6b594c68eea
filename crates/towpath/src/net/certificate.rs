//! Certificates and keys in PEM files, and the one cryptography provider of the process.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use towpath_core::{Error, Result};

/// Installs it; every client and server of the process uses it. Calling again is fine.
pub fn install_provider() {
    // Another caller was first: one is installed, which is all that matters.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
}

/// The certificate chain and the key in these PEM files.
///
/// # Errors
/// `Invalid` when one of them cannot be read.
pub fn chain_and_key(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let wrong = |path: &Path, error: rustls::pki_types::pem::Error| {
        let text = format!("`{}` is not the PEM file that is needed", path.display());
        Error::invalid(text).with_source(error)
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| wrong(certificate, error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
    Ok((chain, secret))
}
