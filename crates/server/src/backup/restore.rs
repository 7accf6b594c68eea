//! Restoring: built aside, checked, and put in place at once.
//!
//! A data folder that does not exist is made beside its location and renamed. One that exists and is empty, such as a mount,
//! is filled while it holds the folder `restoring`, which keeps every start from using it and goes last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use towpath_core::{Error, Result};
use uuid::Uuid;

use super::location::{Location, failed, make_folders, sync_below, sync_folder};
use super::manifest::{self, Entry, Hashing, difference};
use super::{DATABASE, STORE};
use crate::stores::{Depth, RESTORING, Verified, verify_store};
use towpath::disk;

/// Entries of a new file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Summary of a restore.
#[derive(Debug)]
pub struct Restored {
    /// Files and their bytes.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The databases.
    pub databases: Vec<String>,
    /// The contents of the restored store; its faults were in the store that was backed up.
    pub store: Verified,
}

/// Puts a backup into a data folder that does not exist or is empty.
///
/// Without a manifest, where that is wanted, only a store that lacks nothing is restored.
///
/// # Errors
/// `Conflict` when the folder is not empty, `Corrupt` when the backup is not complete or a file does not match the
/// manifest, `Unavailable` for I/O. Nothing is in the data folder then.
pub async fn restore(location: &Location, data: &Path, without_manifest: bool) -> Result<Restored> {
    let files = match location.manifest().await? {
        Some(manifest) => manifest
            .files
            .into_iter()
            .map(RestoredFile::Listed)
            .collect(),
        None if without_manifest => unlisted(location).await?,
        None => return Err(super::verify::incomplete(location)),
    };
    if !files.iter().any(|file| file.name().starts_with(STORE)) {
        let text = format!("`{location}` has no store; name the folder of a backup");
        return Err(Error::corrupt(text));
    }
    let aside = Aside::begin(data)?;
    let mut restored = Restored {
        files: 0,
        bytes: 0,
        databases: Vec::new(),
        store: Verified::default(),
    };
    for file in &files {
        let target = manifest::target(file.name())?;
        let copied = copy(location, file, &aside.folder.join(target)).await?;
        if target.ends_with(DATABASE) {
            restored.databases.push(target.to_owned());
        }
        restored.files += 1;
        restored.bytes += copied.bytes;
    }
    restored.databases.sort();
    restored.store = verify_store(&aside.folder, Depth::All)?;
    let databases = super::verify::databases(&aside.folder)?;
    let faults = databases.into_values().flatten();
    restored.store.faults.extend(faults);
    if without_manifest && !restored.store.faults.is_empty() {
        return Err(Error::corrupt(format!(
            "`{location}` is not a whole backup: {}",
            restored.store.faults.join("; ")
        )));
    }
    aside.put_in_place()?;
    Ok(restored)
}

/// A file to restore.
enum RestoredFile {
    Listed(Entry),
    Unlisted(String),
}

impl RestoredFile {
    fn name(&self) -> &str {
        match self {
            Self::Listed(entry) => &entry.name,
            Self::Unlisted(name) => name,
        }
    }
}

/// The files of a backup without a manifest.
async fn unlisted(location: &Location) -> Result<Vec<RestoredFile>> {
    let files = location.list().await?.into_iter().map(|(name, _)| name);
    let known = files.filter(|name| manifest::target(name).is_ok());
    Ok(known.map(RestoredFile::Unlisted).collect())
}

async fn copy(location: &Location, file: &RestoredFile, to: &Path) -> Result<Entry> {
    let above = to.parent().unwrap_or(to);
    disk::private_folders(above).map_err(|error| failed("made", above, error))?;
    let name = file.name();
    let mut pieces = location
        .read(name)
        .await
        .map_err(|error| damaged(location, error))?;
    let mut hashing = Hashing::new();
    let mut options = disk::private();
    let out = options.write(true).create_new(true).open(to);
    let mut out = out.map_err(|error| failed("made", to, error))?;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        hashing.update(&piece);
        io::Write::write_all(&mut out, &piece).map_err(|error| failed("written", to, error))?;
    }
    out.sync_all()
        .map_err(|error| failed("written", to, error))?;
    let found = hashing.finish(name);
    if let RestoredFile::Listed(expected) = file
        && let Some(fault) = difference(expected, &found)
    {
        return Err(damaged(location, Error::corrupt(fault)));
    }
    Ok(found)
}

fn damaged(location: &Location, fault: Error) -> Error {
    match fault.kind() {
        towpath_core::ErrorKind::NotFound | towpath_core::ErrorKind::Corrupt => {
            Error::corrupt(format!(
                "the backup in `{location}` is damaged: {fault}; nothing was restored, and `towpath verify {location}` names every fault"
            ))
        }
        _ => fault,
    }
}

/// Where a data folder is built; removed again unless it is put in place.
struct Aside {
    /// Where it is built.
    folder: PathBuf,
    data: PathBuf,
    /// In an empty data folder, and not beside its location.
    is_inside: bool,
    is_done: bool,
}

impl Aside {
    fn begin(data: &Path) -> Result<Self> {
        let is_inside = data.exists();
        let folder = if is_inside {
            refuse_full(data)?;
            data.join(RESTORING)
        } else {
            let above = data.parent().unwrap_or(Path::new("/"));
            make_folders(above)?;
            let name = data.file_name().unwrap_or_default().to_string_lossy();
            above.join(format!(".{name}.{RESTORING}-{}", Uuid::now_v7()))
        };
        disk::private_folder(&folder).map_err(|error| failed("made", &folder, error))?;
        sync_folder(folder.parent().unwrap_or(data))?;
        Ok(Self {
            folder,
            data: data.to_owned(),
            is_inside,
            is_done: false,
        })
    }

    fn put_in_place(mut self) -> Result<()> {
        sync_below(&self.folder)?;
        if self.is_inside {
            let entries = fs::read_dir(&self.folder);
            for entry in entries.map_err(|error| failed("read", &self.folder, error))? {
                let from = entry.map_err(|error| failed("read", &self.folder, error))?;
                let to = self.data.join(from.file_name());
                fs::rename(from.path(), &to).map_err(|error| failed("made", &to, error))?;
            }
            sync_folder(&self.data)?;
            fs::remove_dir(&self.folder).map_err(|error| failed("removed", &self.folder, error))?;
            self.is_done = true;
            return sync_folder(&self.data);
        }
        fs::rename(&self.folder, &self.data).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => full(&self.data),
            _ => failed("put in place", &self.data, error),
        })?;
        self.is_done = true;
        sync_folder(self.data.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            let folder = self.folder.display();
            tracing::warn!(%folder, %error, "files of a restore not removed");
        }
    }
}

fn refuse_full(data: &Path) -> Result<()> {
    if !data.is_dir() {
        let text = format!(
            "`{}` is not a folder; name another one with `--data`",
            data.display()
        );
        return Err(Error::conflict(text));
    }
    if data.join(RESTORING).exists() {
        return Err(Error::conflict(format!(
            "an earlier restore into `{}` was cut off; empty that folder and restore again",
            data.display()
        )));
    }
    for entry in fs::read_dir(data).map_err(|error| failed("read", data, error))? {
        let name = entry
            .map_err(|error| failed("read", data, error))?
            .file_name();
        if name != LOST_AND_FOUND {
            return Err(full(data));
        }
    }
    Ok(())
}

fn full(data: &Path) -> Error {
    Error::conflict(format!(
        "the data folder `{}` is not empty; stop its process and move it (`mv {0} {0}.old`), or name another one with `--data`",
        data.display()
    ))
}
