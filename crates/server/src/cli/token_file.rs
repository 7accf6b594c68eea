//! The token of a process on this machine, left where its user's command line finds it by the admin address.
//!
//! The data folder holds the token as well, but the command line may run in another folder, and the data of
//! `towpath up --ephemeral` is in a temporary one.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// A token file that goes with its process; a killed process leaves it to the next one on its address.
pub(super) struct TokenFile {
    path: PathBuf,
    token: String,
}

impl TokenFile {
    /// Leaves the token of the process that listens on `address`.
    ///
    /// # Errors
    /// When there is no folder that only this user can use.
    pub(super) fn leave(address: &str, token: String) -> io::Result<Self> {
        let path = made_folder()?.join(file_name(address));
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(token.as_bytes())?;
        fs::rename(&new, &path)?;
        Ok(Self { path, token })
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // Another process may own the address by now.
        if fs::read_to_string(&self.path).is_ok_and(|token| token == self.token) {
            // A file that cannot be removed names a process that has ended, which does no harm.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// The token of the process that listens on `address`, if it left one.
pub(super) fn find(address: &str) -> Option<String> {
    let text = fs::read_to_string(own_folder().ok()?.join(file_name(address))).ok()?;
    Some(text.trim().to_owned())
}

fn file_name(address: &str) -> String {
    name_of(address, "token")
}

/// `127.0.0.1:7070.token`; every way to say this machine is the same.
pub(super) fn name_of(address: &str, suffix: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let host = match host {
        "" | "0.0.0.0" | "[::]" | "[::1]" | "localhost" => "127.0.0.1",
        host => host,
    };
    format!("{host}:{port}.{suffix}").replace('/', "_")
}

fn folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        Some(runtime) => PathBuf::from(runtime).join("towpath"),
        None => {
            let user = rustix::process::getuid().as_raw();
            std::env::temp_dir().join(format!("towpath-{user}"))
        }
    }
}

/// The folder, created if missing.
pub(super) fn made_folder() -> io::Result<PathBuf> {
    match DirBuilder::new().mode(0o700).create(folder()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => own_folder(),
    }
}

/// The folder, when it is this user's alone: its name in the shared temporary folder can be guessed.
pub(super) fn own_folder() -> io::Result<PathBuf> {
    let (path, user) = (folder(), rustix::process::getuid().as_raw());
    let found = fs::symlink_metadata(&path)?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0 {
        return Ok(path);
    }
    Err(io::Error::other(format!(
        "`{}` is not a folder that only you can use",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_this_machine_is_one_name() {
        for address in [":7070", "0.0.0.0:7070", "localhost:7070", "[::1]:7070"] {
            assert_eq!(file_name(address), "127.0.0.1:7070.token");
        }
        assert_eq!(file_name("10.0.0.1:7070"), "10.0.0.1:7070.token");
        assert_eq!(file_name("../../x:1"), ".._.._x:1.token");
    }
}
