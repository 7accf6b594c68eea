//! Follows the files of the inputs line by line, across renames, truncation, replacement and restarts.
//!
//! Nothing is kept here that must survive: the caller saves the [`Position`] with the lines, in one step where it can.
//!
//! ```text
//! new at an input        -> find files renamed before it, then begin it
//! as it was              -> continue at the position
//! other bytes than read  -> finish the copy that was made of it, if there is one, then from its beginning
//! renamed or removed     -> continue until it was quiet for the waiting time, because its writer may still write; close it
//! ```
//!
//! Files with one input path are a lineage: the older ones are read to their end before a newer one continues.

#![expect(
    clippy::disallowed_methods,
    reason = "compared with times of the file system"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::cutter::{Cutter, Limits, Line};
use super::inputs::{Inputs, Present, resolved};
use super::position::{Identity, Position};
use towpath::disk::folder_of;

/// A removed file can have no new writers, so it is closed sooner than a renamed one.
const REMOVED_WAIT: Duration = Duration::from_secs(5);

/// Interval of scans while there is something to read.
const LOOK: Duration = Duration::from_millis(100);

/// Followed inputs and settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which files.
    pub inputs: Inputs,
    /// Bounds of one read.
    pub limits: Limits,
    /// Idle time after which a renamed file is closed.
    pub rotate_wait: Duration,
    /// Retention of the position of a closed file.
    pub forget_after: Duration,
    /// The name of this host.
    pub host: String,
}

/// Saved positions.
#[derive(Debug, Default)]
pub struct Saved {
    /// Positions by [`Position::key`].
    pub positions: BTreeMap<String, Position>,
    /// Positions of release 0.1.0, by the name that they were stored under.
    pub paths: BTreeMap<String, (PathBuf, Position)>,
}

/// Lines of one file, and where it stands behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which of the open files, for as long as it is open.
    pub(super) file: u64,
    /// In the order of the file; none where only the position is to be saved.
    pub lines: Vec<Line>,
    /// Behind the last of them.
    pub position: Position,
    /// The name of release 0.1.0 under which the position is stored too; it is not needed once this one is saved.
    pub replaces: Option<String>,
}

/// A file that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: u64,
    pub(super) file: File,
    pub(super) at: Position,
    /// Whether the position was ever saved.
    pub(super) is_saved: bool,
    /// Whether the position was chosen, and so must be saved before anything is read.
    pub(super) is_decided: bool,
    pub(super) replaces: Option<String>,
    /// The input at which it is; `None` when it was renamed or removed.
    pub(super) is_at: Option<PathBuf>,
    /// Older files of a lineage have smaller ones.
    pub(super) order: u64,
    pub(super) cutter: Cutter,
}

/// All files of the inputs.
#[derive(Debug)]
pub struct Tail {
    pub(super) settings: Settings,
    pub(super) files: Vec<Open>,
    /// Positions of files that are not open.
    pub(super) known: BTreeMap<String, Position>,
    /// As [`Saved::paths`], of files that were not found yet.
    pub(super) old: BTreeMap<String, (PathBuf, Position)>,
    /// Names under which positions of release 0.1.0 are stored that are not needed any more.
    pub(super) outdated: Vec<String>,
    pub(super) next_id: u64,
    pub(super) is_first_look: bool,
    /// Copies of followed files that were seen at this look and at the one before, and may have more than was read.
    pub(super) copies: BTreeSet<String>,
    pub(super) copies_before: BTreeSet<String>,
    looked: Option<Instant>,
    missing: BTreeSet<PathBuf>,
    problems: Vec<String>,
    /// Those of reading, which each read finds out again.
    unread: Vec<String>,
    /// Which lineage is read first next time.
    turn: usize,
}

impl Tail {
    /// Continues at the saved positions.
    pub fn new(settings: Settings, saved: Saved) -> Self {
        Self {
            settings,
            files: Vec::new(),
            known: saved.positions,
            old: saved.paths,
            outdated: Vec::new(),
            next_id: 0,
            is_first_look: true,
            copies: BTreeSet::new(),
            copies_before: BTreeSet::new(),
            looked: None,
            missing: BTreeSet::new(),
            problems: Vec::new(),
            unread: Vec::new(),
            turn: 0,
        }
    }

    /// Scans the inputs. While there is something to read, at most ten times a second.
    pub fn look(&mut self, is_reading: bool) {
        if is_reading && self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        self.copies_before = std::mem::take(&mut self.copies);
        let present = self.settings.inputs.find();
        for path in &present.missing {
            if !self.missing.contains(path) {
                warn!(input = %path.display(), "input file missing; waiting for it");
            }
        }
        self.missing = present.missing.iter().cloned().collect();
        self.problems = present.problems.clone();
        for open in &mut self.files {
            let there = open.file.metadata();
            let there = there.map(|metadata| (metadata.dev(), metadata.ino()));
            open.is_at = there
                .ok()
                .and_then(|file| present.files.get(&file).cloned());
        }
        self.begin_new(&present);
        self.is_first_look = false;
    }

    /// Opens new files at the inputs, and files renamed in between.
    fn begin_new(&mut self, present: &Present) {
        let open: BTreeSet<&PathBuf> = self
            .files
            .iter()
            .filter_map(|open| open.is_at.as_ref())
            .collect();
        let new = present.files.values().filter(|path| !open.contains(path));
        let new: Vec<PathBuf> = new.cloned().collect();
        let mut lineages = BTreeSet::new();
        for path in &new {
            match self.begin(path) {
                Ok(true) => {
                    lineages.insert((path.clone(), resolved(path)));
                }
                Ok(false) => {}
                Err(error) => self.problems.push(unreadable(path, &error)),
            }
        }
        if self.is_first_look {
            // Also of inputs where nothing is at the moment.
            let positions = self.known.values();
            let mut paths: BTreeSet<_> = positions
                .filter(|at| self.settings.inputs.cover(&at.path))
                .map(|at| (at.path.clone(), at.real.clone()))
                .collect();
            let old = self.old.values().map(|(path, _)| path);
            paths.extend(
                old.filter(|path| self.settings.inputs.cover(path))
                    .map(|path| (path.clone(), resolved(path))),
            );
            lineages.extend(paths);
        }
        let mut by_folder = BTreeMap::<PathBuf, Vec<(PathBuf, PathBuf)>>::new();
        for (path, real) in lineages {
            let folder = folder_of(&real).to_owned();
            by_folder.entry(folder).or_default().push((path, real));
        }
        for (folder, lineages) in by_folder {
            if let Err(error) = self.find_renamed(&folder, &lineages) {
                self.problems.push(unreadable(&folder, &error));
            }
        }
        self.files.sort_by(|one, other| {
            let order = |open: &Open| (open.is_at.is_some(), open.order);
            (&one.at.path, order(one)).cmp(&(&other.at.path, order(other)))
        });
    }

    /// The next lines, of as many lineages as `most`; empty when there is nothing new. The same again until
    /// [`Tail::accept`].
    pub fn read(&mut self, most: usize) -> Vec<Chunk> {
        let mut lineages: Vec<PathBuf> =
            self.files.iter().map(|open| open.at.path.clone()).collect();
        lineages.dedup();
        self.unread.clear();
        let mut chunks = Vec::new();
        let count = lineages.len();
        for step in 0..count {
            if chunks.len() == most {
                self.turn = (self.turn + step) % count;
                break;
            }
            let lineage = &lineages[(self.turn + step) % count];
            match self.read_lineage(lineage) {
                Ok(chunk) => chunks.extend(chunk),
                Err(error) => self.unread.push(unreadable(lineage, &error)),
            }
        }
        chunks
    }

    fn read_lineage(&mut self, lineage: &Path) -> io::Result<Option<Chunk>> {
        let mut index = 0;
        while index < self.files.len() {
            if self.files[index].at.path != lineage {
                index += 1;
                continue;
            }
            if !self.files[index].at.holds_in(&self.files[index].file)? {
                // A copy with the rest of the old contents comes before it.
                self.begin_again(index)?;
                index = 0;
                continue;
            }
            let open = &mut self.files[index];
            if let Some(chunk) = open.read(&self.settings)? {
                return Ok(Some(chunk));
            }
            if open.is_quiet_for_good(&self.settings)? {
                if open.is_saved || open.at.offset > 0 {
                    let closed = Some(now());
                    let position = Position {
                        closed,
                        ..open.at.clone()
                    };
                    return Ok(Some(open.chunk(Vec::new(), position)));
                }
                self.files.remove(index);
                continue;
            }
            index += 1;
        }
        Ok(None)
    }

    /// Continues after a chunk.
    pub fn accept(&mut self, chunk: Chunk) {
        let Some(index) = self.files.iter().position(|open| open.id == chunk.file) else {
            return;
        };
        if chunk.position.closed.is_some() {
            let open = self.files.remove(index);
            info!(input = %open.at.path.display(), read = open.at.offset, "file closed");
            self.known.insert(chunk.position.key(), chunk.position);
            return;
        }
        let open = &mut self.files[index];
        open.at = chunk.position;
        open.is_saved = true;
        open.replaces = None;
        open.cutter.moved();
    }

    /// Continues elsewhere in the file of a chunk: where another reader is, or at its beginning without a position.
    pub fn go_to(&mut self, chunk: &Chunk, position: Option<Position>) -> io::Result<()> {
        let Some(open) = self.files.iter_mut().find(|open| open.id == chunk.file) else {
            return Ok(());
        };
        open.cutter.moved();
        open.is_saved = position.is_some();
        open.replaces = None;
        open.at = match position {
            Some(position) => Position {
                path: open.at.path.clone(),
                real: open.at.real.clone(),
                ..position
            },
            None => open.at.moved(&open.file, 0)?,
        };
        Ok(())
    }

    /// Inputs where no file is.
    pub fn missing(&self) -> impl Iterator<Item = &PathBuf> {
        self.missing.iter()
    }

    /// Inputs that cannot be read, and why.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.iter().chain(&self.unread)
    }

    /// Each file that is at an input: the input, the bytes read and the size.
    pub fn progress(&self) -> impl Iterator<Item = (&Path, u64, u64)> {
        self.files.iter().filter_map(|open| {
            let size = open.file.metadata().ok()?.len();
            Some((open.is_at.as_deref()?, open.at.offset, size))
        })
    }

    /// The folders in which something may change.
    pub fn folders(&self) -> BTreeSet<PathBuf> {
        let open = self
            .files
            .iter()
            .map(|open| folder_of(&open.at.real).to_owned());
        let mut folders = self.settings.inputs.folders();
        folders.extend(open);
        folders
    }

    /// Keys of positions that are not needed any more; the caller removes them.
    pub fn expired(&mut self) -> Vec<String> {
        let (now, forget_after) = (now(), self.settings.forget_after.as_secs());
        let mut expired = std::mem::take(&mut self.outdated);
        self.known.retain(|key, at| {
            let is_due = at
                .closed
                .is_some_and(|closed| now.saturating_sub(closed) >= forget_after);
            if is_due {
                expired.push(key.clone());
            }
            !is_due
        });
        expired
    }
}

impl Open {
    /// The bytes after the position, or the position itself where it was not saved and must be.
    fn read(&mut self, settings: &Settings) -> io::Result<Option<Chunk>> {
        let is_finished = match settings.limits.quiet {
            Some(quiet) => is_quiet(&self.file, quiet)? || self.is_quiet_for_good(settings)?,
            None => self.is_quiet_for_good(settings)?,
        };
        let cut = self
            .cutter
            .cut(&self.file, self.at.offset, &settings.limits, is_finished)?;
        if let Some((lines, end)) = cut {
            let position = self.at.moved(&self.file, end)?;
            return Ok(Some(self.chunk(lines, position)));
        }
        // Where a file begins is decided once, and so is the position in one that release 0.1.0 read.
        let is_decided = self.is_decided || self.replaces.is_some();
        Ok((is_decided && !self.is_saved).then(|| self.chunk(Vec::new(), self.at.clone())))
    }

    fn chunk(&self, lines: Vec<Line>, position: Position) -> Chunk {
        Chunk {
            file: self.id,
            lines,
            position,
            replaces: self.replaces.clone(),
        }
    }

    /// Whether its writers are done: it was renamed or removed, and quiet for long enough since.
    fn is_quiet_for_good(&self, settings: &Settings) -> io::Result<bool> {
        if self.is_at.is_some() {
            return Ok(false);
        }
        let wait = match self.file.metadata()?.nlink() {
            0 => settings.rotate_wait.min(REMOVED_WAIT),
            _ => settings.rotate_wait,
        };
        is_quiet(&self.file, wait)
    }

    pub(super) fn identity(&self) -> io::Result<Identity> {
        Ok(Identity::of(&self.file.metadata()?))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("input `{}` cannot be read: {error}", path.display())
}

/// Whether neither the bytes nor the name of a file changed for so long.
fn is_quiet(file: &File, quiet: Duration) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let changed = u64::try_from(metadata.ctime()).unwrap_or(0);
    let changed =
        UNIX_EPOCH + Duration::new(changed, u32::try_from(metadata.ctime_nsec()).unwrap_or(0));
    let changed = metadata
        .modified()
        .map_or(changed, |modified| modified.max(changed));
    let since = SystemTime::now().duration_since(changed);
    Ok(since.is_ok_and(|since| since >= quiet))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
