//! Backups: the files of a data folder, with a manifest that is written last.
//!
//! ```text
//! snapshot of the store -+
//! copies of databases ---+-> folder or bucket -> synced -> manifest          (make.rs)
//! manifest -> files, each checked against it -> aside -> synced -> renamed    (restore.rs)
//! ```
//!
//! Without a manifest a backup is not complete, and is never restored by mistake.

mod bucket;
mod location;
mod make;
mod manifest;
mod restore;
mod stream;
mod verify;

pub use location::Location;
pub use make::Making;
pub use manifest::{Entry, Manifest};
pub use restore::{Restored, restore};
pub use stream::{SnapshotReader, outgoing};
pub use verify::{Report, verify};

/// Where the store stands in a backup; databases stand beside it.
pub const STORE: &str = "store";

/// The ending of a database's file.
const DATABASE: &str = ".db";
