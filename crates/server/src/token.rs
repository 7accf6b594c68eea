//! Tokens in a data folder: a user with read access to the folder may use the API.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use towpath_core::{Error, Result};

use towpath::disk;

/// A secret that is compared in constant time and never printed.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// A configured secret.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself, for those who have to show it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this is it.
    pub fn matches(&self, given: &str) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), given.as_bytes()).is_ok()
    }
}

/// The token in an `Authorization` header. The case of the scheme does not matter (RFC 9110, section 11.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim_start())
}

impl Token {
    /// The secret in this file of a folder, made when there is none: 256 random bits, readable by its owner only.
    ///
    /// One that others can read is closed to them.
    ///
    /// # Errors
    /// `Unavailable` when the file cannot be read, closed to others, or made; it is never replaced then.
    pub fn kept_in(folder: &Path, file: &str) -> Result<Self> {
        let path = folder.join(file);
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
            return make(&path).map_err(io);
        }
        let found = fs::metadata(&path).map_err(io)?;
        disk::check_owner(&path, &found)?;
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(io)?;
            tracing::warn!(path = %path.display(), "others could read the token; they no longer can, but may know it: delete it for a new one");
        }
        Ok(Self(text.trim().into()))
    }
}

fn make(path: &Path) -> std::io::Result<Token> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system has no random numbers"))?;
    let text = URL_SAFE_NO_PAD.encode(bytes);
    disk::replace(path, format!("{text}\n").as_bytes())?;
    Ok(Token(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "test.token";

    #[test]
    fn a_token_stays_and_is_its_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = Token::kept_in(folder.path(), FILE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(
            Token::kept_in(folder.path(), FILE)
                .unwrap()
                .matches(&first.0)
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_cannot_be_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, b"\xff\xfe not a text").unwrap();
        assert!(Token::kept_in(folder.path(), FILE).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"\xff\xfe not a text");
    }
}
