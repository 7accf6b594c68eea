//! The manifest: which files a backup has, their lengths and checksums.

#![expect(
    clippy::disallowed_methods,
    reason = "the machine's time is shown to people"
)]

use std::collections::BTreeSet;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256, digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result};
use uuid::Uuid;

use super::{DATABASE, STORE};

/// Its name in a backup.
pub(super) const NAME: &str = "manifest.json";

/// The newest format; this build reads every one up to it.
const FORMAT: u32 = 1;

/// The files of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of the manifest.
    pub format: u32,
    /// Of the backup.
    pub id: Uuid,
    /// The version that made it.
    pub towpath: String,
    /// When it was complete.
    pub created_at: Timestamp,
    /// Every other file of the backup, by name.
    pub files: Vec<Entry>,
    /// SHA-256 of the manifest with this field empty.
    sha256: String,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path in the backup.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
}

/// Fields of every format.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

impl Manifest {
    /// Of these files, made now.
    pub(super) fn new(mut files: Vec<Entry>) -> Result<Self> {
        files.sort();
        let now = Timestamp::try_from(SystemTime::now())
            .map_err(|error| Error::invalid("the clock is out of range").with_source(error))?;
        let mut manifest = Self {
            format: FORMAT,
            id: Uuid::now_v7(),
            towpath: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: now,
            files,
            sha256: String::new(),
        };
        manifest.sha256 = manifest.digest()?;
        Ok(manifest)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::invalid("the manifest cannot be encoded").with_source(error))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest and checks it.
    ///
    /// # Errors
    /// `Corrupt` when it was changed, is of a newer format, or names files that a backup does not have.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let unreadable = |error: serde_json::Error| {
            Error::corrupt(format!("`{NAME}` cannot be read; it is damaged")).with_source(error)
        };
        let Head { format } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if !(1..=FORMAT).contains(&format) {
            return Err(Error::corrupt(format!(
                "`{NAME}` has format {format}; this Towpath reads 1 to {FORMAT}; a newer one may read it"
            )));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(unreadable)?;
        if manifest.digest()? != manifest.sha256 {
            return Err(Error::corrupt(format!(
                "`{NAME}` does not match its own checksum; it is damaged or was edited"
            )));
        }
        let mut names = BTreeSet::new();
        for file in &manifest.files {
            target(&file.name)?;
            if !names.insert(&file.name) {
                let text = format!("`{NAME}` names `{}` twice", file.name);
                return Err(Error::corrupt(text));
            }
        }
        Ok(manifest)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The databases.
    pub fn databases(&self) -> impl Iterator<Item = &str> {
        let names = self.files.iter().map(|file| file.name.as_str());
        names.filter(|name| !name.contains('/'))
    }

    fn digest(&self) -> Result<String> {
        let unsigned = Self {
            sha256: String::new(),
            ..self.clone()
        };
        Ok(hex::encode(digest(&SHA256, &unsigned.encode()?).as_ref()))
    }
}

/// Where a file of a backup stands in a data folder.
///
/// # Errors
/// `Corrupt` for a name that no backup has.
pub(super) fn target(name: &str) -> Result<&str> {
    let parts: Vec<&str> = name.split('/').collect();
    let is_plain =
        |part: &&str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
    let known = match parts.as_slice() {
        [first, "checkpoint" | "log", _] if *first == STORE => true,
        [file] => file.ends_with(DATABASE),
        _ => false,
    };
    if !known || !parts.iter().all(is_plain) {
        let text = format!("`{NAME}` names `{name}`, which is not a file of a backup");
        return Err(Error::corrupt(text));
    }
    let inside = name
        .strip_prefix(STORE)
        .and_then(|rest| rest.strip_prefix('/'));
    Ok(inside.unwrap_or(name))
}

/// Computes the checksum of a file while its bytes pass.
pub(super) struct Hashing {
    context: Context,
    bytes: u64,
}

impl Hashing {
    pub(super) fn new() -> Self {
        Self {
            context: Context::new(&SHA256),
            bytes: 0,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn finish(self, name: &str) -> Entry {
        Entry {
            name: name.to_owned(),
            bytes: self.bytes,
            sha256: hex::encode(self.context.finish().as_ref()),
        }
    }
}

/// The damage of a file, read as `found`, that should be `expected`.
pub(super) fn difference(expected: &Entry, found: &Entry) -> Option<String> {
    let name = &expected.name;
    if found.bytes != expected.bytes {
        let (has, wanted) = (found.bytes, expected.bytes);
        return Some(format!("`{name}` has {has} bytes instead of {wanted}"));
    }
    (found.sha256 != expected.sha256).then(|| format!("`{name}` does not match its checksum"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Hashing::new().finish(name)
    }

    #[test]
    fn a_manifest_reads_back_and_every_flipped_bit_is_noticed() {
        let files = vec![entry("store/log/0000000001.log"), entry("accounts.db")];
        let manifest = Manifest::new(files).unwrap();
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        assert_eq!(manifest.databases().collect::<Vec<_>>(), ["accounts.db"]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // White space between tokens may change into other white space.
            if let Ok(read) = Manifest::decode(&flipped) {
                assert_eq!(read, manifest, "bit {bit}");
            }
        }
        for end in 0..bytes.len() - 2 {
            assert!(Manifest::decode(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_manifest_of_version_1_reads_back() {
        let sample = include_bytes!("../../tests/samples/manifest-v1.json");
        let manifest = Manifest::decode(sample).unwrap();
        assert_eq!(manifest.towpath, "0.1.0");
        assert_eq!(manifest.bytes(), 155_648);
        assert_eq!(manifest.files[1].name, "store/log/0000000001.log");
    }

    #[test]
    fn names_outside_of_a_backup_are_refused() {
        for name in [
            "../x.db",
            "/etc/x.db",
            "store/../x.db",
            "store/log/../../x",
            "store/log",
            "store/LOCK",
            "admin.token",
            ".db",
            "store/log/.new",
            "",
        ] {
            let manifest = Manifest::new(vec![entry(name)]).unwrap();
            let error = Manifest::decode(&manifest.encode().unwrap()).unwrap_err();
            assert!(
                error.to_string().contains("not a file of a backup"),
                "{error}"
            );
        }
        assert_eq!(target("store/log/1.log").unwrap(), "log/1.log");
        assert_eq!(target("accounts.db").unwrap(), "accounts.db");
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut manifest = Manifest::new(Vec::new()).unwrap();
        manifest.format = 2;
        let error = Manifest::decode(&manifest.encode().unwrap()).unwrap_err();
        assert!(error.to_string().contains("has format 2"), "{error}");
    }
}
