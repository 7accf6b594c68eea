//! TLS: the one cryptography provider of the process, and the certificate of its listeners.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use towpath_core::{Error, Result, ResultExt};

/// Interval of checks whether the files have changed.
const LOOK: Duration = Duration::from_secs(5);

/// Installs it; every client and server of the process uses it. Calling again is fine.
pub fn install_provider() {
    // Another caller was first: one is installed, which is all that matters.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
}

/// A certificate with its key, read again when the files change.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// When each file was written.
    of: [Option<SystemTime>; 2],
    looked_at: Instant,
}

impl Tls {
    /// The certificate chain and the key in these PEM files.
    ///
    /// # Errors
    /// `Invalid` when one of them cannot be read, or they do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self> {
        install_provider();
        Ok(Self {
            loaded: Mutex::new(Loaded {
                of: [written(certificate), written(key)],
                config: read(certificate, key)?,
                looked_at: Instant::now(),
            }),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The acceptor with the present contents of the files.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked_at.elapsed() >= LOOK {
            loaded.looked_at = Instant::now();
            let of = [written(&self.certificate), written(&self.key)];
            if of != loaded.of {
                match read(&self.certificate, &self.key) {
                    Ok(config) => {
                        (loaded.config, loaded.of) = (config, of);
                        tracing::info!("certificate reloaded");
                    }
                    // One of the two may not be written yet.
                    Err(error) => tracing::warn!(
                        error = error.chain(),
                        "the new certificate cannot be used; going on with the old one"
                    ),
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&loaded.config))
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path)
        .and_then(|file| file.modified())
        .ok()
}

/// The certificate chain and the key in these PEM files.
///
/// # Errors
/// `Invalid` when one of them cannot be read.
pub(super) fn chain_and_key(
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

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let (chain, secret) =
        chain_and_key(certificate, key).context(|| "`server.tls` cannot be used")?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| {
            Error::invalid("the certificate and the key of `server.tls` do not go together")
                .with_source(error)
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
