//! Lines of files that appear, disappear, shrink and are renamed.

mod identity;
mod lines;
mod rotation;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;

const LIMITS: Limits = Limits {
    line: 16,
    lines: 3,
    bytes: 32,
    quiet: None,
};

/// A folder, its followed files, and saved positions.
struct World {
    folder: tempfile::TempDir,
    texts: Vec<String>,
    own: Own,
    limits: Limits,
    rotate_wait: Duration,
    ends_before: Option<SystemTime>,
    tail: Option<Tail>,
    saved: BTreeMap<String, Position>,
    old: BTreeMap<String, (PathBuf, Position)>,
}

impl World {
    /// Follows `in`.
    fn new() -> Self {
        Self::of(&["in"])
    }

    fn of(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = |name: &&str| folder.path().join(name).display().to_string();
        Self {
            texts: names.iter().map(text).collect(),
            folder,
            own: Own::default(),
            limits: LIMITS,
            rotate_wait: Duration::from_secs(60),
            ends_before: None,
            tail: None,
            saved: BTreeMap::new(),
            old: BTreeMap::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let mut options = fs::OpenOptions::new();
        let path = self.path(name);
        let mut file = options.create(true).append(true).open(path).unwrap();
        file.write_all(text.as_ref()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
        // File systems know when a file was made to a few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
    }

    fn tail(&mut self) -> &mut Tail {
        let mut inputs = Inputs::new(self.texts.clone(), self.own.clone());
        if let Some(moment) = self.ends_before {
            for text in &self.texts {
                inputs.set_ends_before(text.clone(), moment);
            }
        }
        let settings = Settings {
            inputs,
            limits: self.limits,
            rotate_wait: self.rotate_wait,
            forget_after: Duration::ZERO,
            host: "here".to_owned(),
        };
        let saved = Saved {
            positions: self.saved.clone(),
            paths: self.old.clone(),
        };
        self.tail.get_or_insert_with(|| Tail::new(settings, saved))
    }

    /// One look and everything that is read then, each position saved.
    fn all(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        self.tail().look(false);
        loop {
            let chunks = self.tail().read(16);
            if chunks.is_empty() {
                return found;
            }
            for chunk in chunks {
                found.extend(chunk.lines.iter().map(|line| match line {
                    Line::Whole(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                    Line::TooLong(start, length) => {
                        format!("{}… of {length}", String::from_utf8(start.clone()).unwrap())
                    }
                }));
                self.saved
                    .insert(chunk.position.key(), chunk.position.clone());
                if let Some(old) = &chunk.replaces {
                    self.old.remove(old);
                }
                self.tail().accept(chunk);
            }
        }
    }

    /// As after a restart.
    fn restart(&mut self) {
        self.tail = None;
    }

    /// Removes unneeded positions, and returns them.
    fn expire(&mut self) -> Vec<String> {
        let expired = self.tail().expired();
        for key in &expired {
            self.saved.remove(key);
            self.old.remove(key);
        }
        expired
    }

    fn open(&mut self) -> usize {
        self.tail().files.len()
    }
}
