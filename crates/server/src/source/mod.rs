//! Sources: inputs that Towpath reads.
//!
//! A [`Tail`] follows all files of the configured inputs: [`Inputs`] says which those are, a [`Position`] belongs to a
//! file and says how far it was read, `find.rs` recognises files after renames, copies and restarts, `cutter.rs` cuts
//! bytes into lines, and [`Wake`] reports changes of folders.

mod cutter;
mod find;
mod inputs;
mod names;
mod position;
mod resume;
mod tail;
mod wake;

pub use cutter::{Limits, Line};
pub use inputs::{Inputs, Own};
pub use position::Position;
pub use resume::{Resumed, position_at, resume};
pub use tail::{Chunk, Saved, Settings, Tail};
pub use wake::Wake;

#[cfg(test)]
mod tests;
