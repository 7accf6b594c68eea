//! Log lines of failed operations.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use towpath_core::log_throttle::LogThrottle;
use towpath_core::{Error, ErrorKind};
use tracing::{debug, warn};

static THROTTLES: Mutex<BTreeMap<&str, LogThrottle>> = Mutex::new(BTreeMap::new());

/// Logs a failed operation. While a backend is unavailable each request and each attempt fails for the same reason: of
/// those the first is logged, then one a minute with the count. `operation` is the constant text of the line.
pub fn log_failure(operation: &'static str, error: &Error) {
    let reason = error.chain();
    if error.kind() != ErrorKind::Unavailable {
        warn!(error = reason, "{operation}");
        return;
    }
    let count = {
        let mut throttles = THROTTLES.lock().unwrap_or_else(PoisonError::into_inner);
        throttles.entry(operation).or_default().count()
    };
    match count {
        Some(count) => warn!(error = reason, count, "{operation}"),
        None => debug!(error = reason, "{operation}"),
    }
}
