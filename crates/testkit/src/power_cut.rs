//! Power cuts: a file system in an image file, which loses all unsynced data at once.
//!
//! The cut is the file system's own `shutdown`: dirty pages never reach the disk, every further call
//! gives `EIO`. Data that was synced or written back by the kernel is there after the next mount, as it
//! is after a real cut. The loss of a disk's own cache is not simulated: the image keeps every write it got.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Small enough to be made in a moment, and the least that XFS takes.
const IMAGE_BYTES: u64 = 320 << 20;

/// Longest wait for a dying process to close the files.
const PATIENCE: Duration = Duration::from_secs(30);

/// Marks a process that has its own mount namespace.
const PRIVATE: &str = "TOWPATH_TEST_PRIVATE_MOUNTS";

/// How `TOWPATH_TEST_REQUIRE` names the power cuts.
pub const NAME: &str = "power-cut";

/// File system of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// By `mkfs.xfs`.
    Xfs,
    /// By `mkfs.ext4`.
    Ext4,
}

/// Whether the cut flushes the file system's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It is lost with the rest: files may miss their newest names and sizes.
    Plain,
    /// It is written first: files have their names and sizes, and not the bytes that belong there.
    JournalFlushed,
}

/// A mounted image. Unmounted and removed when dropped.
#[derive(Debug)]
pub struct Disk {
    folder: tempfile::TempDir,
    mounted: bool,
}

impl Disk {
    /// Makes, formats and mounts one.
    ///
    /// # Errors
    /// Errors of the tools, with their output; [`missing`] checks whether they are installed.
    pub fn new(file_system: FileSystem) -> io::Result<Self> {
        Self::with_size(file_system, IMAGE_BYTES)
    }

    /// The same of another size. The image takes only the space of written data.
    ///
    /// # Errors
    /// As [`Disk::new`].
    pub fn with_size(file_system: FileSystem, bytes: u64) -> io::Result<Self> {
        let mut disk = Self {
            folder: tempfile::tempdir()?,
            mounted: false,
        };
        // A server that runs as another user must be able to reach the mount.
        std::fs::set_permissions(disk.folder.path(), Permissions::from_mode(0o711))?;
        std::fs::File::create(disk.image())?.set_len(bytes)?;
        std::fs::create_dir(disk.path())?;
        let mut format = match file_system {
            FileSystem::Xfs => Command::new("mkfs.xfs"),
            FileSystem::Ext4 => Command::new("mkfs.ext4"),
        };
        run(format.arg("-q").arg(disk.image()))?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Writes everything back, as the system has long done for files installed before a test.
    ///
    /// # Errors
    /// Of the tool.
    pub fn sync(&self) -> io::Result<()> {
        run(Command::new("sync").arg("--file-system").arg(self.path()))
    }

    /// Cuts the power. From here on every call on its files fails with `EIO`.
    ///
    /// One that is under way may still lie: with [`Cut::Plain`] the kernel was seen to give success for an `fdatasync`
    /// of a file that grows, at most one, whose bytes were then not there (5 of 100 cuts on XFS, 18 of 100 on ext4;
    /// none when bytes in place were overwritten). Messages that rest on that one sync alone must be distinguished from those answered
    /// before the call.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn cut(&self, cut: Cut) -> io::Result<()> {
        let shutdown = match cut {
            Cut::Plain => "shutdown",
            Cut::JournalFlushed => "shutdown -f",
        };
        run(Command::new("xfs_io")
            .args(["-x", "-c", shutdown])
            .arg(self.path()))
    }

    /// Unmounts it, which waits until no process has its files open, and mounts it again on another device number, as
    /// after a restart of the machine.
    ///
    /// # Errors
    /// When its files are still in use after 30 s, or the tools fail.
    pub fn restart(&mut self) -> io::Result<()> {
        self.unmount()?;
        // Takes the device that has just become free, so that the image gets another one.
        let placeholder = Placeholder::attach(&self.folder.path().join("placeholder"))?;
        self.mount()?;
        drop(placeholder);
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount(&mut self) -> io::Result<()> {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(self.image())
            .arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            match run(Command::new("umount").arg(self.path())) {
                Ok(()) => break,
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: also when a process that the failed test has left holds its files. The loop device goes with the mount.
            drop(run(Command::new("umount").arg("-l").arg(self.path())));
        }
    }
}

/// An attached loop device of no use.
struct Placeholder(PathBuf);

impl Placeholder {
    fn attach(file: &Path) -> io::Result<Self> {
        std::fs::write(file, [0; 4096])?;
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if device.is_empty() {
            return Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Ok(Self(device.into()))
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        drop(run(Command::new("losetup").arg("--detach").arg(&self.0)));
    }
}

/// Why the power cannot be cut here, if so.
pub fn missing(file_system: FileSystem) -> Option<String> {
    let tried = Disk::new(file_system).and_then(|disk| disk.cut(Cut::Plain));
    let error = tried.err()?;
    Some(format!(
        "needs root, loop devices and the package xfsprogs, which `make setup` installs ({error})"
    ))
}

/// Restarts this process in its own mount namespace, where that is possible; call it first in `main`.
///
/// The kernel then unmounts the images also when the test is killed, and no other process keeps them busy.
pub fn with_private_mounts() {
    use std::os::unix::process::CommandExt;

    if std::env::var_os(PRIVATE).is_some() {
        return;
    }
    let able = Command::new("unshare")
        .args(["--mount", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let program = std::env::current_exe();
    if let (true, Ok(program)) = (able, program) {
        // Returns only when it failed; without private mounts everything works too.
        drop(
            Command::new("unshare")
                .arg("--mount")
                .arg(program)
                .args(std::env::args_os().skip(1))
                .env(PRIVATE, "1")
                .exec(),
        );
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let program = command.get_program().to_string_lossy();
    Err(io::Error::other(format!("{program}: {}", stderr.trim())))
}
