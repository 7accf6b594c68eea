//! The accounts app's roles, from their configuration.

use std::sync::Arc;

use towpath_core::Result;
use towpath_core::backend::Backend;

use super::Role;
use super::opened::Opened;
use super::process::Process;
use super::public::Public;
use crate::apps::accounts::{Limiter, Rules, routes};

/// The role's name in health, metrics and the account.
const API: &str = "accounts.api";

/// The app on its backend.
pub(super) struct Accounts(Backend);

impl Accounts {
    /// Opens what the app needs, when its role runs.
    pub(super) async fn open(process: &Process<'_>, opened: &mut Opened) -> Result<Option<Self>> {
        if !process.runs(Role::AccountsApi) {
            return Ok(None);
        }
        let backend = opened.open(&process.config.limits_backend).await?;
        Ok(Some(Self(backend)))
    }

    /// Adds its routes to the public listener.
    pub(super) fn start(self, process: &Process<'_>, public: &mut Public) -> Result<()> {
        let store = self.0.require_rate_limit(API)?;
        let rules = Rules::parse(&process.config.limits)?;
        let limiter = Limiter::new(store, Arc::clone(&process.clock), rules);
        public.add(API, routes(limiter), &[]);
        Ok(())
    }
}
