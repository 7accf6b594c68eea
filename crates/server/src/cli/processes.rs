//! The Towpath processes of this user on this machine, and the one that a command asks.
//!
//! Each process leaves a file beside its token and keeps it locked while it lives, so that a file of a killed process
//! names none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::token_file::{made_folder, name_of, own_folder};
use super::{Exit, Failure, Format, Global, output};

/// Suffix of the file that a process leaves.
const SUFFIX: &str = "process";

/// Options of `ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath ps")]
pub(super) struct PsArgs {}

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its admin API.
    pub(super) admin: String,
    pub(super) pid: u32,
    pub(super) roles: Vec<String>,
    /// Its data folder.
    pub(super) data: PathBuf,
}

/// The file of a process, locked and removed with it.
pub(super) struct Registration {
    path: PathBuf,
    lock: File,
}

impl Registration {
    /// Leaves the file of this process.
    ///
    /// # Errors
    /// When the folder cannot be made, or other users can use it.
    pub(super) fn leave(process: &Process) -> io::Result<Self> {
        let folder = made_folder()?;
        sweep(&folder);
        let path = folder.join(name_of(&process.admin, SUFFIX));
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&serde_json::to_vec(process)?)?;
        fs::rename(&new, &path)?;
        Ok(Self { path, lock: file })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The listener has ended, so that another process may have its file there.
        let inode = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|found| found.ino());
        if inode(fs::metadata(&self.path)) == inode(self.lock.metadata()) {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Every process that is running, by address.
pub(super) fn running() -> Vec<Process> {
    let Ok(folder) = own_folder() else {
        return Vec::new();
    };
    let files = files(&folder).into_iter();
    let mut all: Vec<Process> = files
        .filter(|path| is_locked(path))
        .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
        .collect();
    all.sort_by(|one, other| one.admin.cmp(&other.admin));
    all
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_ours = |path: &PathBuf| path.extension().is_some_and(|end| end == SUFFIX);
    paths.filter(is_ours).collect()
}

/// Whether the process that left the file lives.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

/// Removes the files of killed processes.
fn sweep(folder: &Path) {
    let dead = files(folder).into_iter().filter(|path| !is_locked(path));
    for path in dead {
        fs::remove_file(path).ok();
    }
}

/// Which process a command asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    One(&'a Process),
    /// None is known that could be asked.
    None,
    Several(Vec<&'a Process>),
}

/// Chooses among the running processes: one with a role of the first of these apps that any of them has, and of those
/// the ones with this data folder. A folder that was asked for excludes the others.
pub(super) fn choose<'a>(
    all: &'a [Process],
    apps: &[&str],
    folder: &Path,
    is_asked: bool,
) -> Choice<'a> {
    let folder = whole(folder);
    let has = |process: &Process, app: &str| process.roles.iter().any(|role| role.starts_with(app));
    let of_app = |app: &&str| all.iter().filter(|one| has(one, app)).collect::<Vec<_>>();
    let mut found = apps.iter().map(of_app).find(|found| !found.is_empty());
    let mut candidates = found.take().unwrap_or_else(|| all.iter().collect());
    let here = |one: &&Process| one.data == folder;
    if is_asked || candidates.iter().any(here) {
        candidates.retain(here);
    }
    match candidates.as_slice() {
        [] => Choice::None,
        [one] => Choice::One(one),
        _ => Choice::Several(candidates),
    }
}

/// The path of a folder from the root, without symbolic links where it exists.
pub(super) fn whole(folder: &Path) -> PathBuf {
    let whole = fs::canonicalize(folder).or_else(|_| std::path::absolute(folder));
    whole.unwrap_or_else(|_| folder.to_owned())
}

/// Says which processes there are to choose from.
pub(super) fn ambiguous(candidates: &[&Process]) -> Failure {
    let mut text = format!(
        "{} Towpath processes are running; choose one with `--admin ADDRESS`:",
        candidates.len()
    );
    for one in candidates {
        let (admin, pid, roles) = (&one.admin, one.pid, in_words(&one.roles));
        text.push_str(&format!("\n  {admin}  pid {pid}  {roles}"));
    }
    Failure::new(Exit::Usage, text)
}

/// Roles for people.
pub(super) fn in_words(roles: &[String]) -> String {
    match roles.len() == crate::wiring::Role::all().count() {
        true => "all roles".to_owned(),
        false => roles.join(","),
    }
}

/// `towpath ps`.
pub(super) fn list(global: &Global, _: PsArgs) -> Result<Exit, Failure> {
    let all = running();
    if global.format == Format::Json {
        output::json(&all)?;
    } else if all.is_empty() {
        output::note("no Towpath process of this user is running; start one with `towpath up`");
    } else {
        let rows = all.into_iter().map(|one| {
            vec![
                one.admin,
                one.pid.to_string(),
                in_words(&one.roles),
                one.data.display().to_string(),
            ]
        });
        output::table(&["ADMIN", "PID", "ROLES", "DATA"], rows)?;
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(port: u16, roles: &[&str], data: &str) -> Process {
        Process {
            admin: format!("127.0.0.1:{port}"),
            pid: 1,
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            data: data.into(),
        }
    }

    #[test]
    fn a_command_asks_the_process_with_the_role_then_the_folder() {
        let all = [
            process(1, &["accounts.api"], "/a"),
            process(2, &["accounts.relay"], "/a"),
            process(3, &["accounts.relay", "ingest.api"], "/b"),
        ];
        let chosen = |apps: &[&str], folder: &str, is_asked| match choose(
            &all,
            apps,
            Path::new(folder),
            is_asked,
        ) {
            Choice::One(one) => one.admin.clone(),
            Choice::None => "none".to_owned(),
            Choice::Several(several) => several.len().to_string(),
        };
        let outbox = ["accounts.relay", "accounts.api"];
        assert_eq!(chosen(&outbox, "/a", false), "127.0.0.1:2");
        assert_eq!(chosen(&outbox, "/b", false), "127.0.0.1:3");
        assert_eq!(chosen(&outbox, "/c", false), "2");
        assert_eq!(chosen(&outbox, "/c", true), "none");
        assert_eq!(chosen(&[], "/b", false), "127.0.0.1:3");
        assert_eq!(chosen(&[], "/a", false), "2");
        assert_eq!(chosen(&["ingest."], "/a", false), "127.0.0.1:3");
        // The server says that it has no such role.
        assert_eq!(chosen(&["fleet.worker"], "/b", false), "127.0.0.1:3");
        assert_eq!(choose(&[], &[], Path::new("/a"), false), Choice::None);
    }
}
