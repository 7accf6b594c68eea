//! Recognises files: by their identity, by positions of release 0.1.0, as renamed predecessors, and as copies that were
//! made before a truncation.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{DirEntryExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::cutter::{Cutter, end_of_lines};
use super::inputs::resolved;
use super::names::is_rotated;
use super::position::{Identity, Position};
use super::tail::{Open, Tail, now};
use towpath::disk::folder_of;

/// A file of a folder.
struct Entry {
    name: OsString,
    inode: u64,
    path: PathBuf,
}

/// Whether a new file is a copy of one that is followed.
enum Copied {
    No,
    /// It may have more than was read: that is known once the original was truncated.
    Later,
    /// All of it was read in the original.
    All,
}

impl Tail {
    /// Begins to follow the file at an input. Whether it did.
    pub(super) fn begin(&mut self, path: &Path) -> io::Result<bool> {
        let Some(file) = open(path)? else {
            return Ok(false);
        };
        let real = resolved(path);
        let start = Position::beginning(&file, path.to_owned(), real.clone())?;
        let is_at = Some(path.to_owned());
        if let Some(at) = self.known.remove(&start.key()) {
            self.push(file, at, is_at).is_saved = true;
            return Ok(true);
        }
        if let Some((name, at)) = self.take_old(&file, &start)? {
            info!(input = %path.display(), read = at.offset, "position of release 0.1.0 found");
            self.push(file, at, is_at).replaces = Some(name);
            return Ok(true);
        }
        match self.copied(&file, &real, start.key())? {
            Copied::No => {}
            Copied::Later => return Ok(false),
            Copied::All => {
                let end = file.metadata()?.len();
                let at = start.moved(&file, end)?;
                self.push(file, at, is_at).is_decided = true;
                return Ok(true);
            }
        }
        let is_successor = self.has_lineage(path, &real);
        let made = file.metadata()?.created();
        let ends_before = self.settings.inputs.ends_before(path);
        let is_early = |moment| made.is_ok_and(|made| made <= moment);
        if is_successor {
            info!(input = %path.display(), "input rotated");
        } else if ends_before.is_some_and(is_early) {
            let at = start.moved(&file, end_of_lines(&file)?)?;
            info!(input = %path.display(), skipped = at.offset, "new file; sending lines appended from now on");
            self.push(file, at, is_at).is_decided = true;
            return Ok(true);
        } else {
            info!(input = %path.display(), "new file; sending it from its beginning");
        }
        self.push(file, start, is_at);
        Ok(true)
    }

    fn push(&mut self, file: File, at: Position, is_at: Option<PathBuf>) -> &mut Open {
        self.next_id += 1;
        let host = self.settings.host.clone();
        let at = Position { host, ..at };
        let order = at.birth.unwrap_or(0);
        self.files.push(Open {
            id: self.next_id,
            file,
            at,
            is_saved: false,
            is_decided: false,
            replaces: None,
            is_at,
            order,
            cutter: Cutter::default(),
        });
        let last = self.files.len() - 1;
        &mut self.files[last]
    }

    /// The position that release 0.1.0 stored for this file, under whatever path, with the missing fields.
    fn take_old(
        &mut self,
        file: &File,
        start: &Position,
    ) -> io::Result<Option<(String, Position)>> {
        for (name, (path, at)) in &self.old {
            if at.inode == start.inode && at.offset > 0 && at.holds_in(file)? {
                let name = name.clone();
                let mut start = start.clone();
                // The name of a long path was shortened.
                if path.is_absolute() {
                    start.path.clone_from(path);
                }
                let at = start.moved(file, at.offset)?;
                self.old.remove(&name);
                return Ok(Some((name, at)));
            }
        }
        Ok(None)
    }

    /// Whether a file was followed at this input before.
    fn has_lineage(&self, path: &Path, real: &Path) -> bool {
        let open = self.files.iter().map(|open| &open.at);
        let mut all = open.chain(self.known.values());
        all.any(|at| at.path == path || at.real == real)
            || self.old.values().any(|(there, _)| there == path)
    }

    /// Whether a new file is the copy of one that is followed, which a rotation makes before it truncates that.
    fn copied(&mut self, copy: &File, real: &Path, key: String) -> io::Result<Copied> {
        let length = copy.metadata()?.len();
        for open in &self.files {
            let Some(base) = open.is_at.as_deref().map(resolved) else {
                continue;
            };
            let is_beside = base.parent() == real.parent();
            let (base, name) = (base.file_name(), real.file_name());
            let is_rotated = base
                .zip(name)
                .is_some_and(|(base, name)| is_rotated(base, name));
            if !is_beside || !is_rotated || open.at.offset == 0 {
                continue;
            }
            if open.at.was_copied_to(copy)? {
                self.copies.insert(key);
                return Ok(Copied::Later);
            }
            let is_known = self.copies_before.contains(&key);
            if length < open.at.offset && (is_known || open.has_beginning(copy, length)?) {
                return Ok(Copied::All);
            }
        }
        Ok(Copied::No)
    }

    /// Opens the renamed files of some lineages in a folder that have something to read, or may get it.
    pub(super) fn find_renamed(
        &mut self,
        folder: &Path,
        lineages: &[(PathBuf, PathBuf)],
    ) -> io::Result<()> {
        let entries = entries(folder)?;
        let mut by_inode = BTreeMap::<u64, Vec<&Entry>>::new();
        for entry in &entries {
            by_inode.entry(entry.inode).or_default().push(entry);
        }
        let is_one = |path: &Path, real: &Path| {
            lineages
                .iter()
                .any(|(one, there)| one == path || there == real)
        };
        let known: Vec<String> = self
            .known
            .iter()
            .filter(|(_, at)| folder_of(&at.real) == folder && is_one(&at.path, &at.real))
            .map(|(key, _)| key.clone())
            .collect();
        for key in known {
            let at = self.known[&key].clone();
            let found = by_inode.get(&at.inode).into_iter().flatten();
            if !self.reopen(&key, &at, found.copied())? {
                self.gone(&key, &at);
            }
        }
        let old: Vec<String> = self
            .old
            .iter()
            .filter(|(_, (path, _))| is_one(path, &resolved(path)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in old {
            self.reopen_old(&name, &by_inode)?;
        }
        for (path, real) in lineages {
            self.find_unseen(path, real, &entries)?;
        }
        Ok(())
    }

    /// Opens a renamed file unless it was read and closed. Whether it is there.
    fn reopen<'a>(
        &mut self,
        key: &str,
        at: &Position,
        found: impl Iterator<Item = &'a Entry>,
    ) -> io::Result<bool> {
        for entry in found {
            let Some(file) = open(&entry.path)? else {
                continue;
            };
            let metadata = file.metadata()?;
            if !Identity::of(&metadata).is_same_file(at.identity()) {
                continue;
            }
            let is_read = at.closed.is_some() && metadata.len() == at.offset;
            if !is_read {
                self.known.remove(key);
                self.push(file, at.clone(), None).is_saved = true;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// A file that was read here before is not there any more, under any name of its folder.
    fn gone(&mut self, key: &str, at: &Position) {
        let is_followed = self.files.iter().any(|open| open.at.path == at.path);
        if !self.is_first_look || !is_followed || at.host != self.settings.host {
            return;
        }
        if at.closed.is_none() {
            warn!(
                input = %at.path.display(), read = at.offset,
                "the input is another file than before; reading it from its beginning"
            );
        }
        self.known.remove(key);
        self.outdated.push(key.to_owned());
    }

    /// As [`Tail::reopen`], for a position of release 0.1.0.
    fn reopen_old(&mut self, name: &str, by_inode: &BTreeMap<u64, Vec<&Entry>>) -> io::Result<()> {
        let (path, at) = self.old[name].clone();
        let real = resolved(&path);
        let base = real.file_name().unwrap_or_default();
        for entry in by_inode.get(&at.inode).into_iter().flatten() {
            let Some(file) = open(&entry.path)? else {
                continue;
            };
            let start = Position::beginning(&file, path.clone(), real.clone())?;
            if self.is_open(&file.metadata()?) {
                // It was saved as a position of the file by now.
                self.old.remove(name);
                self.outdated.push(name.to_owned());
                return Ok(());
            }
            let at = match at.holds_in(&file)? {
                true => start.moved(&file, at.offset)?,
                false if is_rotated(base, &entry.name) => start,
                false => continue,
            };
            self.old.remove(name);
            self.push(file, at, None).replaces = Some(name.to_owned());
            return Ok(());
        }
        if self.files.iter().any(|open| open.at.path == path) {
            warn!(
                input = %path.display(), read = at.offset,
                "the input is another file than before; reading it from its beginning"
            );
            self.old.remove(name);
            self.outdated.push(name.to_owned());
        }
        Ok(())
    }

    /// Opens files that came to the input and were renamed before they were ever seen there: they have the name of a
    /// rotation, and were made after the last one that was read and before the one that is there now.
    fn find_unseen(&mut self, path: &Path, real: &Path, entries: &[Entry]) -> io::Result<()> {
        let is_newest = |open: &&Open| open.is_at.as_deref() == Some(path) && !open.is_saved;
        let Some(newest) = self.files.iter().find(is_newest) else {
            return Ok(());
        };
        let (newest, newest_id) = (newest.at.birth, newest.id);
        let mut lineage: Vec<Position> = self
            .files
            .iter()
            .filter(|open| open.id != newest_id)
            .map(|open| &open.at)
            .chain(self.known.values())
            .filter(|at| at.path == path || at.real == real)
            .cloned()
            .collect();
        lineage.sort_by_key(|at| at.birth);
        let last = lineage.last().and_then(|at| at.birth);
        let (Some(last), Some(newest), Some(base)) = (last, newest, real.file_name()) else {
            return Ok(());
        };
        for entry in entries {
            if !is_rotated(base, &entry.name) || self.settings.inputs.cover(&entry.path) {
                continue;
            }
            let Ok(metadata) = fs::symlink_metadata(&entry.path) else {
                continue;
            };
            let birth = Identity::of(&metadata).birth;
            if birth.is_none_or(|birth| birth <= last || birth >= newest)
                || self.is_open(&metadata)
                || self.settings.inputs.excludes(&entry.path, &metadata)
            {
                continue;
            }
            let Some(file) = open(&entry.path)? else {
                continue;
            };
            let at = Position::beginning(&file, path.to_owned(), real.to_owned())?;
            let mut is_copy = false;
            for one in &lineage {
                is_copy |= one.was_copied_to(&file)?;
            }
            if !is_copy && !self.known.contains_key(&at.key()) {
                self.push(file, at, None);
            }
        }
        Ok(())
    }

    /// An open file has other bytes than were read: it was truncated or overwritten. Its earlier bytes that were not
    /// read may be in a copy, which is read first.
    pub(super) fn begin_again(&mut self, index: usize) -> io::Result<()> {
        let copy = self.find_copies(index)?;
        let open = &mut self.files[index];
        let (input, read) = (open.at.path.display(), open.at.offset);
        match copy {
            Some(copy) => {
                warn!(%input, read, copy = %copy.display(), "the input was truncated; reading its copy, then the input from its beginning");
            }
            None => {
                warn!(%input, read, "the input was truncated or overwritten; reading it from its beginning")
            }
        }
        open.at = open.at.moved(&open.file, 0)?;
        open.cutter.moved();
        open.order = now().saturating_mul(1_000_000_000);
        let order = |open: &Open| (open.is_at.is_some(), open.order);
        self.files
            .sort_by(|one, other| (&one.at.path, order(one)).cmp(&(&other.at.path, order(other))));
        Ok(())
    }

    /// Opens the copy with the read part of a file, and more. Other copies of it count as read.
    fn find_copies(&mut self, index: usize) -> io::Result<Option<PathBuf>> {
        let original = &self.files[index];
        let Some(real) = original.is_at.as_deref().map(resolved) else {
            return Ok(None);
        };
        let (at, order) = (original.at.clone(), original.order);
        let mut found = None;
        for entry in entries(folder_of(&real))? {
            let Ok(metadata) = fs::symlink_metadata(&entry.path) else {
                continue;
            };
            if !is_rotated(real.file_name().unwrap_or_default(), &entry.name)
                || self.is_open(&metadata)
                || self.settings.inputs.excludes(&entry.path, &metadata)
            {
                continue;
            }
            let Some(file) = open(&entry.path)? else {
                continue;
            };
            let start = Position::beginning(&file, at.path.clone(), at.real.clone())?;
            let is_at = self
                .settings
                .inputs
                .cover(&entry.path)
                .then(|| entry.path.clone());
            if let Some(known) = self.known.get(&start.key()) {
                if known.offset < metadata.len() && known.path == at.path {
                    let known = known.clone();
                    self.known.remove(&start.key());
                    let open = self.push(file, known, is_at);
                    (open.is_saved, open.order) = (true, order);
                    found = Some(entry.path);
                }
            } else if at.was_copied_to(&file)? {
                let start = start.moved(&file, at.offset)?;
                let open = self.push(file, start, is_at);
                (open.is_decided, open.order) = (true, order);
                found = Some(entry.path);
            } else if is_at.is_some()
                && metadata.len() < at.offset
                && (self.copies.contains(&start.key())
                    || self.files[index].has_beginning(&file, metadata.len())?)
            {
                let start = start.moved(&file, metadata.len())?;
                self.push(file, start, is_at).is_decided = true;
            }
        }
        Ok(found)
    }

    pub(super) fn is_open(&self, metadata: &Metadata) -> bool {
        let identity = Identity::of(metadata);
        self.files
            .iter()
            .any(|open| open.identity().is_ok_and(|one| one == identity))
    }
}

impl Open {
    /// Whether a shorter file is the beginning of this one: by the bytes before its end where they are still here, and
    /// else by its first ones.
    fn has_beginning(&self, copy: &File, length: u64) -> io::Result<bool> {
        if self.at.holds_in(&self.file)? {
            return self.at.moved(&self.file, length)?.holds_in(copy);
        }
        let head = Position {
            offset: self.at.head,
            tail: 0,
            ..self.at.clone()
        };
        head.holds_in(copy)
    }
}

/// The regular files of a folder.
fn entries(folder: &Path) -> io::Result<Vec<Entry>> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    for entry in found {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            entries.push(Entry {
                name: entry.file_name(),
                inode: entry.ino(),
                path: entry.path(),
            });
        }
    }
    Ok(entries)
}

/// The file at a path, when there is one. A path that became a pipe meanwhile does not block.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    let not_waiting = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut options = fs::OpenOptions::new();
    match options.read(true).custom_flags(not_waiting).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
