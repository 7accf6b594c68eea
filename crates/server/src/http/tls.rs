//! TLS: the certificate of the listeners of the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;
use towpath::net::certificate::{chain_and_key, install_provider};
use towpath_core::{Error, Result, ResultExt};

/// Interval of checks whether the files have changed.
const LOOK: Duration = Duration::from_secs(5);

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
