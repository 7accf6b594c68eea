//! The write-ahead log: frames in segments, made durable in groups, read back after a crash.
//!
//! It knows nothing of queues. One frame is one atomic record; records
//! appended while a sync is in flight form the next group.
//!
//! ```text
//! append -> buffered -> written -> synced        (one committer thread)
//!                          |          |-> committed with `fsync`
//!                          |-> committed with `interval`, `os`
//!              |-> committed with `none`
//! ```
//!
//! Format: `docs/format/log.md`.

mod committer;
mod files;
mod frame;
mod inspect;
mod options;
mod position;
mod presence;
mod quarantine;
mod read;
mod recovery;
pub(crate) mod reserve;
mod search;
mod segment;
mod shared;
mod wakeups;
mod whole;
mod writer;

#[cfg(test)]
mod recovery_test;
#[cfg(test)]
mod tests;

pub(crate) use inspect::inspect;
pub(crate) use options::{Durability, Options};
pub(crate) use position::Position;
pub(crate) use presence::Looked;
pub(crate) use read::read_exact_at;
pub use recovery::scan_for_fuzzing;
pub(crate) use recovery::{ACCEPT_LOSS, Recovery};
pub(crate) use segment::{
    VERSION as FORMAT, make_folder, oldest as oldest_segment, path as segment_path, sync_folder,
};
pub(crate) use whole::{Lacking, Needed};
pub(crate) use writer::{Class, Log};
