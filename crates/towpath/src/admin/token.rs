//! The token of a data folder: whoever can read the folder may operate it.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
/// A token that others can read is closed to them.
///
/// # Errors
/// `Unavailable` when the file cannot be read, closed to others, or made; it is never replaced then.
pub fn token(folder: &Path) -> Result<Token> {
    let path = folder.join(FILE);
    let io = |error: std::io::Error| {
        Error::unavailable(format!(
            "`{}` cannot be used; make it readable and writable for this user, or delete it for a new token",
            path.display()
        ))
        .with_source(error)
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(io(error)),
    };
    if text.trim().is_empty() {
        return make(folder, &path).map_err(io);
    }
    if fs::metadata(&path).map_err(io)?.mode() & 0o077 != 0 {
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(io)?;
        tracing::warn!(path = %path.display(), "others could read the token; they no longer can, but may know it: delete it for a new one");
    }
    Ok(Token(text.trim().into()))
}

/// Whole or not at all, also when the machine stops in between.
fn make(folder: &Path, path: &Path) -> std::io::Result<Token> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system has no random numbers"))?;
    let text = URL_SAFE_NO_PAD.encode(bytes);
    fs::create_dir_all(folder)?;
    // A temporary file is readable by its owner only from the first moment.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{text}")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()?;
    Ok(Token(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_and_is_its_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = token(folder.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(token(folder.path()).unwrap().matches(&first.0));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_cannot_be_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, b"\xff\xfe not a text").unwrap();
        assert!(token(folder.path()).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"\xff\xfe not a text");
    }
}
