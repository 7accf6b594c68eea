//! The token of a data folder: whoever can read the folder may operate it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use towpath_core::{Error, Result};

/// The file in the data folder.
pub(crate) const FILE: &str = "admin.token";

/// A secret that is compared in constant time and never printed.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// Whether this is it.
    pub fn matches(&self, given: &str) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), given.as_bytes()).is_ok()
    }
}

/// The folder's token, made when there is none: 256 random bits, readable by its owner only.
///
/// # Errors
/// `Unavailable` when the file cannot be read or made.
pub fn token(folder: &Path) -> Result<Token> {
    let path = folder.join(FILE);
    let io = |error: std::io::Error| {
        Error::unavailable(format!("`{}` cannot be used", path.display())).with_source(error)
    };
    if let Ok(text) = fs::read_to_string(&path)
        && !text.trim().is_empty()
    {
        return Ok(Token(text.trim().into()));
    }
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| Error::unavailable("the system has no random numbers"))?;
    let text = URL_SAFE_NO_PAD.encode(bytes);
    fs::create_dir_all(folder).map_err(io)?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    writeln!(file, "{text}")
        .and_then(|()| file.sync_all())
        .map_err(io)?;
    Ok(Token(text.into()))
}
