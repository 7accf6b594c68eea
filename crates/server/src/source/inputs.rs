//! Which files the inputs are: paths and patterns, without our own files, archives and anything but files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::names::{is_archive, is_pattern, is_rotated};
use towpath::disk::folder_of;

/// Files that this process writes; a file that is followed and written would grow for ever.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// Outputs, with their journals and rotated files.
    pub outputs: Vec<PathBuf>,
    /// Folders of stores, and files with keys and databases: no pattern matches their contents.
    pub private: Vec<PathBuf>,
}

impl Own {
    /// The same, with the links of its paths resolved.
    fn resolved(self) -> Self {
        let all = |paths: Vec<PathBuf>| paths.iter().map(|path| resolved(path)).collect();
        Self {
            outputs: all(self.outputs),
            private: all(self.private),
        }
    }

    /// Whether no pattern matches a path, which has no links.
    fn is_private(&self, path: &Path) -> bool {
        let is_at = |one: &PathBuf| {
            // Beside a database are its journals, `accounts.db-wal`.
            let beside = one.as_os_str().as_encoded_bytes();
            let rest = path.as_os_str().as_encoded_bytes().strip_prefix(beside);
            path.starts_with(one)
                || beside.ends_with(b".db") && rest.is_some_and(|rest| rest.starts_with(b"-"))
        };
        self.private.iter().any(is_at)
    }

    /// Whether a file is an output, its journal, or an output that gave way to a newer one.
    fn has(&self, path: &Path, metadata: &Metadata) -> bool {
        self.outputs.iter().any(|output| {
            let is_same =
                |there: Metadata| (there.dev(), there.ino()) == (metadata.dev(), metadata.ino());
            fs::metadata(output).is_ok_and(is_same) || belongs_to(output, path)
        })
    }
}

fn belongs_to(output: &Path, path: &Path) -> bool {
    let (Some(base), Some(name)) = (output.file_name(), path.file_name()) else {
        return false;
    };
    let Some(rest) = name
        .as_encoded_bytes()
        .strip_prefix(base.as_encoded_bytes())
    else {
        return false;
    };
    let is_named_so = rest.is_empty()
        || rest.starts_with(b".journal")
        || rest.starts_with(b".") && rest.ends_with(b"Z")
        || is_rotated(base, name);
    is_named_so && resolved(path).parent() == output.parent()
}

/// The path with its folder's symbolic links resolved, also when the file itself is not there.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (fs::canonicalize(folder_of(&absolute)), absolute.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

/// The inputs as they are configured.
#[derive(Debug, Clone)]
pub struct Inputs {
    texts: Vec<String>,
    own: Own,
    /// Whether archives are followed too, as for a copy.
    archives: bool,
    /// Files of an input that were made before its moment, and never read, begin at their end.
    ends_before: BTreeMap<String, SystemTime>,
    /// Those that were once there as files of that name, whatever characters it has.
    literal: BTreeSet<String>,
}

/// Files at the inputs now.
#[derive(Debug, Default)]
pub(super) struct Present {
    /// Files by device and inode, each at the first input that has it.
    pub(super) files: BTreeMap<(u64, u64), PathBuf>,
    /// Paths without a file.
    pub(super) missing: Vec<PathBuf>,
    /// Inputs that cannot be followed, and why.
    pub(super) problems: Vec<String>,
}

impl Inputs {
    /// Of paths and patterns, which never match `own`.
    pub fn new(texts: Vec<String>, own: Own) -> Self {
        Self {
            texts,
            own: own.resolved(),
            archives: false,
            ends_before: BTreeMap::new(),
            literal: BTreeSet::new(),
        }
    }

    /// The paths and patterns.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Begins files of an input at their end that were made before this moment and never read.
    pub fn set_ends_before(&mut self, text: String, moment: SystemTime) {
        self.ends_before.insert(text, moment);
    }

    pub(super) fn ends_before(&self, path: &Path) -> Option<SystemTime> {
        let text = self.texts.iter().find(|text| self.covers(text, path))?;
        self.ends_before.get(text).copied()
    }

    /// One file, whatever its name is.
    pub fn only(path: &Path) -> Self {
        let text = path.display().to_string();
        Self {
            literal: BTreeSet::from([text.clone()]),
            texts: vec![text],
            own: Own::default(),
            archives: true,
            ends_before: BTreeMap::new(),
        }
    }

    /// Refuses inputs that are there and are not files, patterns that are invalid, and those that match an output.
    ///
    /// # Errors
    /// The problem, with the input and the next step.
    pub fn check(&self) -> Result<(), String> {
        for text in &self.texts {
            if !is_pattern(text) {
                let path = Path::new(text);
                if let Ok(metadata) = fs::metadata(path) {
                    let kind = metadata.file_type();
                    if !kind.is_file() && !kind.is_dir() {
                        return Err(unfit(path, kind));
                    }
                    if self.own.has(path, &metadata) {
                        return Err(format!(
                            "input `{text}` is the output; set `lines.output` to another file"
                        ));
                    }
                }
                let real = resolved(path);
                if self.own.outputs.contains(&real) {
                    return Err(format!(
                        "input `{text}` is the output; set `lines.output` to another file"
                    ));
                }
                continue;
            }
            let pattern = absolute_pattern(text);
            let pattern = glob::Pattern::new(&pattern)
                .map_err(|error| format!("invalid pattern `{text}`: {error}"))?;
            for output in &self.own.outputs {
                if is_matched(&pattern, output) {
                    return Err(format!(
                        "input pattern `{text}` matches the output `{}`; set `lines.output` to a file outside of it",
                        output.display()
                    ));
                }
            }
        }
        Ok(())
    }

    /// The files that are at the inputs now.
    pub(super) fn paths(mut self) -> Vec<PathBuf> {
        self.find().files.into_values().collect()
    }

    /// The files now.
    pub(super) fn find(&mut self) -> Present {
        let mut present = Present::default();
        let texts = self.texts.clone();
        for text in &texts {
            if self.literal.contains(text) || !is_pattern(text) {
                self.literal.insert(text.clone());
                self.find_file(Path::new(text), &mut present);
            } else {
                self.find_matching(text, &mut present);
            }
        }
        present
    }

    fn find_file(&self, path: &Path, present: &mut Present) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                present.missing.push(path.to_owned());
                return;
            }
            Err(error) => {
                let text = format!("input `{}` cannot be read: {error}", path.display());
                present.problems.push(text);
                return;
            }
        };
        if !metadata.is_file() {
            present.problems.push(unfit(path, metadata.file_type()));
        } else if self.own.has(path, &metadata) {
            let text = format!(
                "input `{}` is a file that this process writes",
                path.display()
            );
            present.problems.push(text);
        } else if is_archive(path) && !self.archives {
            let text = format!(
                "input `{}` is an archive; name the file before it is compressed",
                path.display()
            );
            present.problems.push(text);
        } else {
            present.add(path, &metadata);
        }
    }

    fn find_matching(&self, pattern: &str, present: &mut Present) {
        let found = match glob::glob(pattern) {
            Ok(found) => found,
            Err(error) => {
                let text = format!("invalid pattern `{pattern}`: {error}");
                present.problems.push(text);
                return;
            }
        };
        // Many files share a few folders.
        let mut real_folders = BTreeMap::new();
        for path in found {
            let path = match path {
                Ok(path) => path,
                Err(error) => {
                    let text = format!("input `{pattern}` cannot be read: {error}");
                    present.problems.push(text);
                    continue;
                }
            };
            let folder = folder_of(&path).to_owned();
            let real = real_folders
                .entry(folder)
                .or_insert_with_key(|folder| resolved(folder));
            let name = path.file_name().unwrap_or_default();
            // Missing files, and anything but files, do not match.
            if !self.own.is_private(&real.join(name))
                && let Ok(metadata) = fs::metadata(&path)
                && !self.excludes(&path, &metadata)
            {
                present.add(&path, &metadata);
            }
        }
    }

    /// Whether a file that is or was at this path is of these inputs.
    pub(super) fn cover(&self, path: &Path) -> bool {
        self.texts.iter().any(|text| self.covers(text, path))
    }

    /// Whether a file at this path is or was of one of the inputs.
    pub fn covers(&self, text: &str, path: &Path) -> bool {
        Path::new(text) == path
            || std::path::absolute(text).is_ok_and(|text| text == path)
            || !self.literal.contains(text)
                && glob::Pattern::new(text).is_ok_and(|pattern| matches(&pattern, path))
    }

    /// Whether a file must never be followed.
    pub(super) fn excludes(&self, path: &Path, metadata: &Metadata) -> bool {
        !metadata.is_file() || is_archive(path) || self.own.has(path, metadata)
    }

    /// The folders in which files of the inputs appear, as far as they are there.
    pub(super) fn folders(&self) -> BTreeSet<PathBuf> {
        let folder = |text: &String| {
            let wild = text.find(['*', '?', '[']);
            let fixed = match wild.filter(|_| !self.literal.contains(text)) {
                Some(at) => &text[..=text[..at].rfind('/').unwrap_or(0)],
                None => text,
            };
            let path = Path::new(fixed);
            let folder = if fixed.ends_with('/') {
                path
            } else {
                folder_of(path)
            };
            fs::canonicalize(folder).ok()
        };
        self.texts.iter().filter_map(folder).collect()
    }
}

impl Present {
    fn add(&mut self, path: &Path, metadata: &Metadata) {
        let file = (metadata.dev(), metadata.ino());
        self.files.entry(file).or_insert_with(|| path.to_owned());
    }
}

/// Whether a pattern matches an output under any of the names of its folder.
fn is_matched(pattern: &glob::Pattern, output: &Path) -> bool {
    if matches(pattern, output) {
        return true;
    }
    // The pattern's folder may be a link to the output's.
    let pattern = Path::new(pattern.as_str());
    let (Some(name), Some(last)) = (output.file_name(), pattern.file_name()) else {
        return false;
    };
    let has_name = last.to_str().and_then(|last| glob::Pattern::new(last).ok());
    let has_name = has_name.is_some_and(|last| matches(&last, Path::new(name)));
    let folders = glob::glob(&folder_of(pattern).display().to_string());
    let folders = folders.into_iter().flatten().flatten();
    has_name
        && folders
            .map(|folder| resolved(&folder))
            .any(|folder| Some(folder.as_path()) == output.parent())
}

fn matches(pattern: &glob::Pattern, path: &Path) -> bool {
    let options = glob::MatchOptions {
        require_literal_separator: true,
        ..glob::MatchOptions::new()
    };
    pattern.matches_path_with(path, options)
}

/// The pattern from the root, with the links of the folder before its first wildcard as they are.
fn absolute_pattern(text: &str) -> String {
    if text.starts_with('/') {
        return text.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    let here = glob::Pattern::escape(&here.display().to_string());
    format!("{here}/{}", text.trim_start_matches("./"))
}

/// Why a path cannot be followed.
fn unfit(path: &Path, kind: FileType) -> String {
    let path = path.display();
    let what = if kind.is_dir() {
        return format!(
            "input `{path}` cannot be read: it is a folder; name a file, or a pattern such as `{path}/*`"
        );
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    format!("input `{path}` is {what}, and only files can be followed; write its lines to a file")
}
