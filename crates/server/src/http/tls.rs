//! TLS: the certificate of the listeners of the process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use towpath::net::certificate::{chain_and_key, install_provider};
use towpath_core::{Error, Result, ResultExt};

/// Interval of checks whether the files have changed.
const LOOK: Duration = Duration::from_secs(5);

/// The PEM files of a listener.
#[derive(Debug, Clone)]
pub struct Files {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of client certificates. Without it no client is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// A certificate with its key, read again when the files change.
pub struct Tls {
    files: Files,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    /// When each file was written.
    of: [Option<SystemTime>; 3],
    looked_at: Instant,
}

impl Tls {
    /// The contents of these files.
    ///
    /// # Errors
    /// `Invalid` when one of them cannot be read, or certificate and key do not belong together.
    pub fn load(files: Files) -> Result<Self> {
        install_provider();
        let loaded = Mutex::new(Loaded {
            of: files.written(),
            config: files.read()?,
            looked_at: Instant::now(),
        });
        Ok(Self { files, loaded })
    }

    /// The acceptor with the present contents of the files.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.looked_at.elapsed() >= LOOK {
            loaded.looked_at = Instant::now();
            let of = self.files.written();
            if of != loaded.of {
                match self.files.read() {
                    Ok(config) => {
                        (loaded.config, loaded.of) = (config, of);
                        tracing::info!("certificate reloaded");
                    }
                    // One of them may not be written yet.
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

impl Files {
    fn written(&self) -> [Option<SystemTime>; 3] {
        let client_ca = self.client_ca.as_deref().and_then(written);
        [written(&self.certificate), written(&self.key), client_ca]
    }

    fn read(&self) -> Result<Arc<ServerConfig>> {
        let (chain, secret) = chain_and_key(&self.certificate, &self.key)
            .context(|| "`server.tls` cannot be used")?;
        let config = match &self.client_ca {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(path) => ServerConfig::builder().with_client_cert_verifier(verifier(path)?),
        };
        let mut config = config.with_single_cert(chain, secret).map_err(|error| {
            Error::invalid("the certificate and the key of `server.tls` do not go together")
                .with_source(error)
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Verifies certificates of these authorities. A client without one is served, because it may have another credential.
fn verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>> {
    let wrong = || {
        let path = path.display();
        format!("`server.tls.client_ca` cannot be used; `{path}` must be a PEM file of authorities")
    };
    let mut roots = RootCertStore::empty();
    let authorities = CertificateDer::pem_file_iter(path)
        .map_err(|error| Error::invalid(wrong()).with_source(error))?;
    for authority in authorities {
        let authority = authority.map_err(|error| Error::invalid(wrong()).with_source(error))?;
        roots
            .add(authority)
            .map_err(|error| Error::invalid(wrong()).with_source(error))?;
    }
    // An empty list is an error of the builder.
    WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::invalid(wrong()).with_source(error))
}
