//! A data folder that a restore is filling.

use std::path::Path;

use towpath_core::{Error, Result};

/// The folder in a data folder that a restore removes last.
pub const RESTORING: &str = "restoring";

/// Refuses a data folder in which a restore was cut off.
///
/// # Errors
/// `Corrupt` with the next step.
pub fn refuse_restoring(folder: &Path) -> Result<()> {
    if !folder.join(RESTORING).exists() {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "a restore into `{}` is not complete; empty that folder and restore again",
        folder.display()
    )))
}
