//! Where a backup is: a folder, or a bucket of an S3-compatible server.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use towpath_core::{Error, Result};

use super::bucket::{Bucket, Upload};
use super::manifest::{self, Entry, Hashing, Manifest};
use towpath::disk;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Where a backup is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder.
    Folder(PathBuf),
    /// Objects below a prefix.
    Bucket(Bucket),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

/// A file that is being written.
pub(super) struct Writing {
    name: String,
    hashing: Hashing,
    to: Target,
}

enum Target {
    File(File, PathBuf),
    Upload(Box<Upload>),
}

impl Location {
    /// What `s3://bucket/prefix` or a path says.
    ///
    /// # Errors
    /// `Invalid` for another URL, and for settings of S3 that cannot be used.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("s3://") {
            return Bucket::parse(text).map(Self::Bucket);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(Error::invalid(format!(
                "unknown scheme `{scheme}` of `{text}`; expected a folder or `s3://BUCKET/PREFIX`"
            )));
        }
        std::path::absolute(text)
            .map(Self::Folder)
            .map_err(|error| {
                Error::invalid(format!(
                    "`{text}` is not a path; expected a folder or `s3://BUCKET/PREFIX`"
                ))
                .with_source(error)
            })
    }

    /// Creates the folder of a new backup.
    ///
    /// # Errors
    /// `Conflict` when something is there.
    pub(super) async fn make(&self) -> Result<()> {
        let taken = match self {
            Self::Folder(folder) => {
                let above = folder.parent().unwrap_or(Path::new("/"));
                make_folders(above)?;
                match disk::private_folder(folder) {
                    Ok(()) => return sync_folder(above),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
                    Err(error) => return Err(failed("made", folder, error)),
                }
            }
            Self::Bucket(bucket) => !bucket.list().await?.is_empty(),
        };
        if taken {
            return Err(Error::conflict(format!(
                "`{self}` already exists; name another place for the backup, or remove it first"
            )));
        }
        Ok(())
    }

    /// Removes a backup that was not completed.
    pub(super) async fn remove(&self) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                fs::remove_dir_all(folder).map_err(|error| failed("removed", folder, error))
            }
            Self::Bucket(bucket) => {
                for (name, _) in bucket.list().await? {
                    bucket.delete(&name).await?;
                }
                Ok(())
            }
        }
    }

    /// Begins a file.
    pub(super) async fn write(&self, name: &str) -> Result<Writing> {
        let to = match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let above = path.parent().unwrap_or(folder);
                disk::private_folders(above).map_err(|error| failed("made", above, error))?;
                let mut options = disk::private();
                let file = options.write(true).create_new(true).open(&path);
                Target::File(file.map_err(|error| failed("made", &path, error))?, path)
            }
            Self::Bucket(bucket) => Target::Upload(Box::new(bucket.upload(name).await?)),
        };
        Ok(Writing {
            name: name.to_owned(),
            hashing: Hashing::new(),
            to,
        })
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub(super) async fn read(&self, name: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        let folder = match self {
            Self::Bucket(bucket) => return bucket.read(name).await,
            Self::Folder(folder) => folder,
        };
        let path = folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("`{name}` is missing")));
            }
            Err(error) => return Err(failed("read", &path, error)),
        };
        let pieces = std::iter::from_fn({
            let mut file = Some(file);
            move || {
                let mut piece = vec![0; PIECE];
                let read = file.as_mut()?.read(&mut piece);
                match read {
                    Ok(0) => None,
                    Ok(read) => {
                        piece.truncate(read);
                        Some(Ok(Bytes::from(piece)))
                    }
                    Err(error) => {
                        file = None;
                        Some(Err(failed("read", &path, error)))
                    }
                }
            }
        });
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    /// Reads a file, and gives its length and checksum.
    pub(super) async fn hash(&self, name: &str) -> Result<Entry> {
        let mut hashing = Hashing::new();
        let mut pieces = self.read(name).await?;
        while let Some(piece) = pieces.next().await {
            hashing.update(&piece?);
        }
        Ok(hashing.finish(name))
    }

    /// Every file with its length.
    pub(super) async fn list(&self) -> Result<Vec<(String, u64)>> {
        match self {
            Self::Bucket(bucket) => bucket.list().await,
            Self::Folder(folder) => {
                let mut files = Vec::new();
                walk(folder, "", &mut files).map_err(|error| failed("read", folder, error))?;
                files.sort();
                Ok(files)
            }
        }
    }

    /// The manifest; absent when there is none.
    pub(super) async fn manifest(&self) -> Result<Option<Manifest>> {
        if let Self::Folder(folder) = self
            && !folder.is_dir()
        {
            let text = format!("`{self}` is not a folder; name a backup");
            return Err(Error::not_found(text));
        }
        let mut pieces = match self.read(manifest::NAME).await {
            Ok(pieces) => pieces,
            Err(error) if error.kind() == towpath_core::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Manifest::decode(&bytes).map(Some)
    }

    /// Writes the manifest: from now on the backup is complete.
    pub(super) async fn complete(&self, manifest: &Manifest) -> Result<()> {
        let bytes = manifest.encode()?;
        match self {
            Self::Bucket(bucket) => bucket.put(manifest::NAME, bytes.into()).await,
            Self::Folder(folder) => {
                sync_below(folder)?;
                let path = folder.join(manifest::NAME);
                let temporary = folder.join(".manifest");
                let write = || {
                    let mut options = disk::private();
                    let mut file = options
                        .create(true)
                        .truncate(true)
                        .write(true)
                        .open(&temporary)?;
                    file.write_all(&bytes)?;
                    file.sync_all()?;
                    fs::rename(&temporary, &path)
                };
                write().map_err(|error| failed("written", &path, error))?;
                sync_folder(folder)
            }
        }
    }
}

impl Writing {
    pub(super) async fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.hashing.update(&bytes);
        match &mut self.to {
            Target::File(file, path) => file
                .write_all(&bytes)
                .map_err(|error| failed("written", path, error)),
            Target::Upload(upload) => upload.push(bytes).await,
        }
    }

    /// Ends a file that will not be complete; parts that were sent are removed.
    pub(super) async fn abort(self) {
        if let Target::Upload(upload) = self.to {
            upload.abort().await;
        }
    }

    /// Makes the file durable.
    pub(super) async fn finish(self) -> Result<Entry> {
        match self.to {
            Target::File(file, path) => file
                .sync_all()
                .map_err(|error| failed("written", &path, error))?,
            Target::Upload(upload) => upload.finish().await?,
        }
        Ok(self.hashing.finish(&self.name))
    }
}

/// Makes a folder and those above it, durable with their names.
pub(super) fn make_folders(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(Path::new("/"));
    make_folders(above)?;
    match disk::private_folder(folder) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(|error| failed("made", folder, error))?,
    }
    sync_folder(above)
}

/// Makes the names of all files below a folder durable.
pub(super) fn sync_below(folder: &Path) -> Result<()> {
    let below = fs::read_dir(folder).map_err(|error| failed("read", folder, error))?;
    for entry in below {
        let path = entry.map_err(|error| failed("read", folder, error))?.path();
        if path.is_dir() {
            sync_below(&path)?;
        }
    }
    sync_folder(folder)
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| failed("synced", folder, error))
}

pub(super) fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::unavailable(format!("`{}` cannot be {what}", path.display())).with_source(error)
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<(String, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // A link is followed: a backup may be put together of them.
        let metadata = fs::metadata(entry.path())?;
        if metadata.is_dir() {
            walk(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, metadata.len()));
        }
    }
    Ok(())
}
