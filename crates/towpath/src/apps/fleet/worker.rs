//! The worker's configuration: the newest it was given, on disk before it is confirmed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use towpath_core::{Error, Result};
use tracing::{info, warn};

use super::config::Config;
use crate::http::guard::Guard;

/// The key of the configuration that says where hits go. Source: the reference system.
const URL: &str = "url";

/// What became of a configuration that was given.
pub(super) enum Given {
    /// It is in force.
    Taken(u64),
    /// A newer one is.
    Older(u64),
}

/// A worker; cheap to clone.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    file: PathBuf,
    guard: Arc<Guard>,
    config: Mutex<Option<Config>>,
}

impl Worker {
    /// A worker with the configuration that it had last.
    ///
    /// # Errors
    /// `Unavailable` when the file is there and cannot be read.
    pub fn open(file: PathBuf, guard: Arc<Guard>) -> Result<Self> {
        let config = match std::fs::read(&file) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(config) => Some(config),
                Err(error) => {
                    warn!(file = %file.display(), %error, "the worker's file cannot be used; waiting for a configuration");
                    None
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                let text = format!("`{}` cannot be read", file.display());
                return Err(Error::unavailable(text).with_source(error));
            }
        };
        Ok(Self(Arc::new(Inner {
            file,
            guard,
            config: Mutex::new(config),
        })))
    }

    /// What is in force.
    pub(super) fn config(&self) -> Option<Config> {
        self.lock().clone()
    }

    /// Where hits go.
    pub(super) fn url(&self) -> Result<String> {
        let config = self.config();
        let config = config.ok_or_else(|| Error::not_found("no config available"))?;
        let url = config.data.get(URL).filter(|url| !url.is_empty());
        url.cloned()
            .ok_or_else(|| Error::not_found("no url configured"))
    }

    /// What the guard says of a URL.
    pub(super) fn check(&self, url: &str) -> Result<()> {
        self.0.guard.check(url).map(drop)
    }

    /// Takes a configuration over, unless a newer one is in force. It is on disk when this returns.
    pub(super) fn take(&self, config: Config) -> Result<Given> {
        if let Some(url) = config.data.get(URL).filter(|url| !url.is_empty()) {
            self.check(url)?;
        }
        let mut now = self.lock();
        if let Some(newer) = now.as_ref().filter(|now| config.is_before(now)) {
            return Ok(Given::Older(newer.version));
        }
        let version = config.version;
        if now.as_ref() != Some(&config) {
            let text = serde_json::to_vec_pretty(&config).unwrap_or_default();
            crate::disk::replace(&self.0.file, &text).map_err(|error| {
                let text = format!("`{}` cannot be written", self.0.file.display());
                Error::unavailable(text).with_source(error)
            })?;
            info!(version, "configured");
            *now = Some(config);
        }
        Ok(Given::Taken(version))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Config>> {
        self.0.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
