//! The worker's configuration: the newest it was given, on disk before it is confirmed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result};
use tracing::{info, warn};

use super::config::Config;
use super::proof::PublicKey;
use towpath::net::egress::EgressPolicy;

/// The key of the configuration that says where hits go. Source: the reference system.
const URL: &str = "url";

/// Most superseded configurations that are remembered.
const REMEMBERED: usize = 100;

/// The result of offering a configuration.
pub(super) enum Offered {
    /// It is in force.
    Taken(u64),
    /// A newer one is.
    Older(u64),
}

/// The contents of the file.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    config: Config,
    /// Ids of configurations without an epoch that were in force before, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    superseded: Vec<String>,
}

impl Kept {
    /// Whether a configuration is older than the one in force.
    ///
    /// Without an epoch the number says little, as a reference controller counts from 1 again with a new database:
    /// a lower one is older when it was in force before, or has no id to tell.
    fn is_after(&self, config: &Config) -> bool {
        let has_no_epoch = config.epoch.is_none() && self.config.epoch.is_none();
        let was_in_force = config.id.is_empty() || self.superseded.contains(&config.id);
        config.is_before(&self.config)
            || has_no_epoch && config.version < self.config.version && was_in_force
    }

    /// The stored state once this configuration is in force.
    fn followed_by(mut self, config: Config) -> Self {
        let old = self.config.id;
        if self.config.epoch.is_none() && !old.is_empty() && old != config.id {
            self.superseded.retain(|id| *id != old);
            self.superseded.push(old);
        }
        let excess = self.superseded.len().saturating_sub(REMEMBERED);
        self.superseded.drain(..excess);
        self.config = config;
        self
    }
}

/// A worker; cheap to clone.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    file: PathBuf,
    egress: Arc<EgressPolicy>,
    /// Of the controller, whose configurations alone are accepted.
    public_key: Option<PublicKey>,
    kept: Mutex<Option<Kept>>,
}

impl Worker {
    /// A worker with the configuration that it had last.
    ///
    /// # Errors
    /// `Unavailable` when the file is there and cannot be read.
    pub fn open(
        file: PathBuf,
        egress: Arc<EgressPolicy>,
        public_key: Option<PublicKey>,
    ) -> Result<Self> {
        let kept: Option<Kept> = match std::fs::read(&file) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(kept) => Some(kept),
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
        let verified = match (&kept, &public_key) {
            (Some(kept), Some(key)) => kept.config.verify(key),
            _ => Ok(()),
        };
        if let Err(error) = &verified {
            warn!(file = %file.display(), error = error.chain(), "stored configuration refused; waiting for another one");
        }
        let kept = kept.filter(|_| verified.is_ok());
        Ok(Self(Arc::new(Inner {
            file,
            egress,
            public_key,
            kept: Mutex::new(kept),
        })))
    }

    /// The current configuration.
    pub(super) fn config(&self) -> Option<Config> {
        self.lock().as_ref().map(|kept| kept.config.clone())
    }

    /// Where hits go.
    pub(super) fn url(&self) -> Result<String> {
        let config = self.config();
        let config = config.ok_or_else(|| Error::not_found("no config available"))?;
        let url = config.data.get(URL).filter(|url| !url.is_empty());
        url.cloned()
            .ok_or_else(|| Error::not_found("no url configured"))
    }

    /// Whether the policy allows a URL.
    pub(super) fn check(&self, url: &str) -> Result<()> {
        self.0.egress.check(url).map(drop)
    }

    /// Takes a configuration over, unless a newer one is in force. It is on disk when this returns.
    pub(super) fn take(&self, config: Config) -> Result<Offered> {
        if let Some(key) = &self.0.public_key {
            config.verify(key)?;
        }
        if let Some(url) = config.data.get(URL).filter(|url| !url.is_empty()) {
            self.check(url)?;
        }
        let mut now = self.lock();
        if let Some(newer) = now.as_ref().filter(|now| now.is_after(&config)) {
            return Ok(Offered::Older(newer.config.version));
        }
        let version = config.version;
        if now.as_ref().map(|now| &now.config) != Some(&config) {
            let kept = match now.clone() {
                Some(old) => old.followed_by(config),
                None => Kept {
                    config,
                    superseded: Vec::new(),
                },
            };
            let text = serde_json::to_vec_pretty(&kept).unwrap_or_default();
            towpath::disk::replace(&self.0.file, &text).map_err(|error| {
                let text = format!("`{}` cannot be written", self.0.file.display());
                Error::unavailable(text).with_source(error)
            })?;
            info!(version, "configuration accepted");
            *now = Some(kept);
        }
        Ok(Offered::Taken(version))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
