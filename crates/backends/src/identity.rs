//! Identity of the file or folder at a path.
//!
//! A file that was removed or replaced takes writes through an open descriptor as before, and no later process finds
//! them. Device and inode reveal it.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use towpath_core::{Error, Result};

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A path, and the identity of its target at the start.
#[derive(Debug)]
pub(crate) struct Pinned {
    what: &'static str,
    path: PathBuf,
    identity: Identity,
    /// The number of an open inode is not used again.
    _open: Option<File>,
}

impl Pinned {
    /// A folder, which is kept open.
    pub(crate) fn folder(what: &'static str, path: &Path) -> io::Result<Self> {
        let open = File::open(path)?;
        Ok(Self {
            what,
            path: path.to_owned(),
            identity: (&open.metadata()?).into(),
            _open: Some(open),
        })
    }

    /// A file that the caller has open.
    pub(crate) fn file(what: &'static str, path: &Path, open: &Metadata) -> Self {
        Self {
            what,
            path: path.to_owned(),
            identity: open.into(),
            _open: None,
        }
    }

    /// Checks that the path leads to the same file or folder as at the start.
    ///
    /// # Errors
    /// `Unavailable` when it does not, or cannot be looked up.
    pub(crate) fn check(&self) -> Result<()> {
        match fs::metadata(&self.path) {
            Ok(found) if Identity::from(&found) == self.identity => Ok(()),
            Ok(_) => Err(replaced(self.what, &self.path)),
            Err(error) => Err(lost(self.what, &self.path, error)),
        }
    }
}

/// The error of a replaced target.
pub(crate) fn replaced(what: &str, path: &Path) -> Error {
    Error::unavailable(format!(
        "{what} `{}` was replaced while it was in use; put the original back, or restore a backup, and start again",
        path.display()
    ))
}

/// The error of a missing target.
pub(crate) fn lost(what: &str, path: &Path, error: io::Error) -> Error {
    let path = path.display();
    let gone = matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    );
    Error::unavailable(if gone {
        format!(
            "{what} `{path}` was removed or renamed while it was in use; put the original back, or restore a backup, and start again"
        )
    } else {
        format!("{what} `{path}` cannot be looked up")
    })
    .with_source(error)
}
