//! Files and folders of their owner only: stores hold every message, order and address.
//!
//! Modes are given when a file is made, so that no moment and no umask opens it to other users.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::process::geteuid;
use towpath_core::{Error, Result};

/// The mode of a file.
const FILE: u32 = 0o600;

/// The mode of a folder.
const FOLDER: u32 = 0o700;

/// The user that may change every file anyway.
const ROOT: u32 = 0;

/// Options that make a file with the private mode.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE);
    options
}

/// A new, empty file to write to, in the place of one that is there.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    options().create(true).truncate(true).write(true).open(path)
}

/// Makes a folder.
pub(crate) fn create_dir(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(FOLDER).create(folder)
}

#[cfg(feature = "sqlite")]
/// Makes a folder and the missing ones above it.
pub(crate) fn create_dirs(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER)
        .create(folder)
}

/// Closes a folder of this user to others, with all that older versions made readable in it.
pub(crate) fn close_folder(folder: &Path) -> io::Result<()> {
    let found = fs::metadata(folder)?;
    if found.uid() == geteuid().as_raw() && found.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(FOLDER))?;
    }
    Ok(())
}

/// Refuses a folder in which another user can plant or replace files; one that does not exist is fine.
///
/// A mount point is accepted with a warning: container platforms mount volumes that belong to other users or that all
/// users can write to, and other users of the machine do not reach them.
///
/// # Errors
/// `Invalid` when another user owns it, or all users can write to it.
pub fn check_folder(folder: &Path) -> Result<()> {
    let Ok(found) = fs::metadata(folder) else {
        return Ok(());
    };
    let shown = folder.display();
    let user = geteuid().as_raw();
    let fault = if ![user, ROOT].contains(&found.uid()) {
        format!(
            "belongs to user {}, and this process runs as user {user}; run `chown {user} {shown}` after checking its files",
            found.uid()
        )
    } else if found.mode() & 0o002 != 0 {
        format!("can be written by all users; run `chmod o-w {shown}` after checking its files")
    } else {
        return Ok(());
    };
    // In a folder with the sticky bit, as `/tmp`, every user makes files.
    if found.mode() & 0o1000 == 0 && is_mount_point(folder) {
        tracing::warn!(folder = %shown, owner = found.uid(), mode = format!("{:o}", found.mode() & 0o7777), "other users may write to the mounted data folder");
        return Ok(());
    }
    Err(Error::invalid(format!(
        "folder `{shown}` {fault}, or name another folder"
    )))
}

/// Whether something is mounted at this folder. Source: proc_pid_mountinfo(5).
fn is_mount_point(folder: &Path) -> bool {
    let Ok(folder) = fs::canonicalize(folder) else {
        return false;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| Path::new(&unescaped(point)) == folder)
}

/// A path of the table of mounts, in which white space and backslashes are octal.
fn unescaped(text: &str) -> String {
    let codes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    codes
        .iter()
        .fold(text.to_owned(), |text, (code, character)| {
            text.replace(code, character)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_and_folders_are_their_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        create_dir(&inner).unwrap();
        create(&inner.join("file")).unwrap();
        assert_eq!((mode(&inner), mode(&inner.join("file"))), (0o700, 0o600));
        set_mode(&inner, 0o755);
        close_folder(&inner).unwrap();
        assert_eq!(mode(&inner), 0o700);
    }

    #[test]
    fn folders_that_other_users_can_write_to_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for allowed in [0o700, 0o755, 0o775] {
            set_mode(folder.path(), allowed);
            check_folder(folder.path()).unwrap();
        }
        for refused in [0o777, 0o1777, 0o702] {
            set_mode(folder.path(), refused);
            let error = check_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains("chmod o-w"), "{error}");
        }
        set_mode(folder.path(), 0o700);
        check_folder(&folder.path().join("absent")).unwrap();
        // Only root can give files away.
        if geteuid().as_raw() == ROOT {
            std::os::unix::fs::chown(folder.path(), Some(65534), None).unwrap();
            let error = check_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains("chown 0"), "{error}");
        }
    }

    #[test]
    fn mount_points_are_found() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
        assert_eq!(unescaped("/a\\040b\\134"), "/a b\\");
    }
}
