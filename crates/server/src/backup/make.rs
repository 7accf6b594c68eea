//! Making a backup: every file, and the manifest last.

use std::path::Path;

use futures_util::StreamExt;
use towpath_core::{Error, Result};

use super::STORE;
use super::location::{self, Location};
use super::manifest::{Entry, Manifest};
use super::stream::SnapshotReader;

/// A backup that is being made.
pub struct Making {
    location: Location,
    files: Vec<Entry>,
}

impl Making {
    /// Makes its location.
    ///
    /// # Errors
    /// `Conflict` when something is there already.
    pub async fn begin(location: Location) -> Result<Self> {
        location.make().await?;
        Ok(Self {
            location,
            files: Vec::new(),
        })
    }

    /// Writes the files of a store.
    ///
    /// # Errors
    /// Those of the snapshot and of the location.
    pub async fn store(&mut self, mut snapshot: SnapshotReader) -> Result<()> {
        while let Some(file) = snapshot.next_file().await? {
            let name = format!("{STORE}/{}", file.name);
            super::manifest::target(&name)?;
            let mut writing = self.location.write(&name).await?;
            let written = loop {
                match snapshot.piece().await {
                    Ok(None) => break Ok(()),
                    Ok(Some(piece)) => {
                        if let Err(error) = writing.push(piece).await {
                            break Err(error);
                        }
                    }
                    Err(error) => break Err(error),
                }
            };
            if let Err(error) = written {
                writing.abort().await;
                return Err(error);
            }
            self.files.push(writing.finish().await?);
        }
        Ok(())
    }

    /// A folder for files on their way, where the location is one: its files are removed with the backup.
    pub fn scratch(&self) -> Option<&Path> {
        match &self.location {
            Location::Folder(folder) => Some(folder),
            Location::Bucket(_) => None,
        }
    }

    /// Writes a copy of a database.
    ///
    /// # Errors
    /// Those of the file and of the location.
    pub async fn database(&mut self, name: &str, copy: &Path) -> Result<()> {
        super::manifest::target(name)?;
        let above = Location::Folder(copy.parent().unwrap_or(Path::new("/")).to_owned());
        let found = copy.file_name().unwrap_or_default().to_string_lossy();
        let mut pieces = above.read(&found).await?;
        let mut writing = self.location.write(name).await?;
        while let Some(piece) = pieces.next().await {
            writing.push(piece?).await?;
        }
        self.files.push(writing.finish().await?);
        Ok(())
    }

    /// Checks that every file is there, and writes the manifest.
    ///
    /// # Errors
    /// `Corrupt` when one is not; those of the location.
    pub async fn complete(&mut self) -> Result<Manifest> {
        let mut expected: Vec<(String, u64)> = self
            .files
            .iter()
            .map(|file| (file.name.clone(), file.bytes))
            .collect();
        expected.sort();
        if self.location.list().await? != expected {
            return Err(Error::corrupt(format!(
                "`{}` was changed while the backup was made; make another one",
                self.location
            )));
        }
        let manifest = Manifest::new(std::mem::take(&mut self.files))?;
        self.location.complete(&manifest).await?;
        if let Location::Folder(folder) = &self.location
            && let Some(above) = folder.parent()
        {
            location::sync_folder(above)?;
        }
        Ok(manifest)
    }

    /// Removes written files, and reports the rest.
    pub async fn abandon(self) -> String {
        match self.location.remove().await {
            Ok(()) => format!("the incomplete backup in `{}` was removed", self.location),
            Err(error) => format!(
                "the incomplete backup in `{}` stays there without a manifest, remove it ({})",
                self.location,
                error.chain()
            ),
        }
    }
}
