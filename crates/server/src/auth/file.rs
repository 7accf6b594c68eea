//! The file of keys, read again when it changes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result, ResultExt};
use tracing::{info, warn};

use super::key::Key;
use super::trail::{Record, Trail};
use towpath::disk;
use towpath::supervisor::Stop;

/// Interval of checks whether the file changed.
const INTERVAL: Duration = Duration::from_secs(1);

/// The file's contents.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    keys: Vec<Key>,
}

const VERSION: u32 = 1;

/// The keys of a file as a process uses them; cheap to clone.
#[derive(Debug, Clone)]
pub struct KeyFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    keys: RwLock<Arc<HashMap<String, Key>>>,
}

/// Tells two states of a file apart; `None` for a file that is not there.
type Mark = Option<(u64, u64, i64, i64, u64)>;

impl KeyFile {
    /// The keys in this file; none when it does not exist.
    ///
    /// # Errors
    /// `Invalid` when it is not a file of keys or others can write to it, `Unavailable` when it cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let keys = RwLock::new(Arc::new(indexed(read(&path)?)));
        Ok(Self(Arc::new(Inner { path, keys })))
    }

    /// The key with this id.
    pub fn with<T>(&self, id: &str, use_it: impl FnOnce(Option<&Key>) -> T) -> T {
        let keys = Arc::clone(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner));
        use_it(keys.get(id))
    }

    /// The key of a client certificate with these names; the first name that has one decides.
    pub fn with_certificate<T>(
        &self,
        names: &[String],
        use_it: impl FnOnce(Option<&Key>) -> T,
    ) -> T {
        let keys = Arc::clone(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner));
        let key = names.iter().find_map(|name| {
            let mut keys = keys.values();
            keys.find(|key| key.certificate.as_ref() == Some(name))
        });
        use_it(key)
    }

    /// Reads the file again whenever it changed, until the process stops. A file that cannot be used changes nothing.
    ///
    /// # Errors
    /// None.
    pub async fn watch(self, trail: Trail, stop: Stop) -> Result<()> {
        let mut seen = None;
        loop {
            let (file, trail) = (self.clone(), trail.clone());
            let look = move || {
                let now = mark(&file.0.path);
                if Some(now) != seen {
                    // The first look comes after `open`, which may have read an older state.
                    file.load(seen.is_some().then_some(&trail));
                }
                now
            };
            if let Ok(now) = tokio::task::spawn_blocking(look).await {
                seen = Some(now);
            }
            tokio::select! {
                () = stop.requested() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// With a trail it is a change of a file that was read before.
    fn load(&self, trail: Option<&Trail>) {
        let path = self.0.path.display();
        match read(&self.0.path) {
            Ok(keys) => {
                if let Some(trail) = trail {
                    info!(target: "audit", file = %path, keys = keys.len(), "key file changed");
                    trail.take(Record {
                        object: Some(path.to_string()),
                        ..Record::now("key file changed")
                    });
                }
                let mut current = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
                *current = Arc::new(indexed(keys));
            }
            Err(error) => {
                warn!(file = %path, error = error.chain(), "key file invalid; keeping the keys read before");
            }
        }
    }
}

/// The keys in this file, in the order in which they were made; none when it does not exist.
///
/// # Errors
/// As [`KeyFile::open`].
pub fn read(path: &Path) -> Result<Vec<Key>> {
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let text = format!("cannot read the key file `{shown}`");
            return Err(Error::unavailable(text).with_source(error));
        }
    };
    let found = fs::metadata(path).map_err(|error| {
        let text = format!("cannot read the key file `{shown}`");
        Error::unavailable(text).with_source(error)
    })?;
    disk::check_owner(path, &found)?;
    if found.mode() & 0o022 != 0 {
        return Err(Error::invalid(format!(
            "the key file `{shown}` can be written by other users; run `chmod 600 {shown}` after checking its keys"
        )));
    }
    let contents: Contents = serde_json::from_str(&text).map_err(|error| {
        Error::invalid(format!("`{shown}` is not a file of keys")).with_source(error)
    })?;
    match contents.version {
        VERSION => Ok(contents.keys),
        other => Err(Error::invalid(format!(
            "the key file `{shown}` has version {other}; this Towpath reads version {VERSION}"
        ))),
    }
}

/// Changes the keys in this file, as one step; two commands at once take turns.
///
/// # Errors
/// As [`read`], those of the change, and `Unavailable` when the file cannot be written. It is unchanged then.
pub fn change<T>(path: &Path, change: impl FnOnce(&mut Vec<Key>) -> Result<T>) -> Result<T> {
    let failed = || format!("cannot write the key file `{}`", path.display());
    let io = |error: std::io::Error| Error::unavailable(failed()).with_source(error);
    let folder = disk::folder_of(path);
    disk::private_folders(folder).map_err(io)?;
    // The lock is on the folder, because the file is replaced.
    let lock = File::open(folder).map_err(io)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| io(error.into()))?;
    let mut keys = read(path)?;
    let result = change(&mut keys)?;
    let contents = Contents {
        version: VERSION,
        keys,
    };
    let mut text = serde_json::to_string_pretty(&contents)
        .map_err(|error| Error::unavailable("keys cannot be written").with_source(error))?;
    text.push('\n');
    disk::replace(path, text.as_bytes())
        .map_err(io)
        .context(failed)?;
    Ok(result)
}

fn indexed(keys: Vec<Key>) -> HashMap<String, Key> {
    keys.into_iter().map(|key| (key.id.clone(), key)).collect()
}

fn mark(path: &Path) -> Mark {
    let file = fs::metadata(path).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.mtime(),
        file.mtime_nsec(),
        file.len(),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use towpath_core::Timestamp;

    use super::*;

    fn add(path: &Path, name: &str) -> String {
        let made = change(path, |keys| {
            let (key, _) = Key::make(name.to_owned(), Vec::new(), Timestamp::from_millis(1), None)?;
            let id = key.id.clone();
            keys.push(key);
            Ok(id)
        });
        made.expect("changed")
    }

    #[test]
    fn changes_are_kept_and_are_their_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        assert_eq!(read(&path).unwrap(), []);
        let ids = ["a", "b"].map(|name| add(&path, name));
        let keys = read(&path).unwrap();
        assert_eq!(
            keys.iter().map(|key| &key.id).collect::<Vec<_>>(),
            [&ids[0], &ids[1]]
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let failed = change(&path, |keys| {
            keys.clear();
            Err::<(), _>(Error::invalid("no"))
        });
        assert!(failed.is_err());
        assert_eq!(read(&path).unwrap(), keys);
    }

    #[test]
    fn files_that_cannot_be_trusted_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        add(&path, "a");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        let error = KeyFile::open(path.clone()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in [
            "",
            "[]",
            "{\"version\":2,\"keys\":[]}",
            "{\"version\":1,\"keys\":[{}]}",
        ] {
            fs::write(&path, text).unwrap();
            assert!(KeyFile::open(path.clone()).is_err(), "{text}");
        }
    }
}
