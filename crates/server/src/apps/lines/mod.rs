//! Lines: a file's lines become entries of a stream, and these the lines of another file, each once and in order.
//!
//! ```text
//! file -> Tail -> Reader -- position and entries, one atomic step --> stream -> pump -> FileSink -> file
//! ```
//!
//! The reader's position moves in the same step that appends the lines, so a crash neither loses nor repeats one, and
//! of two readers of one file only one gets ahead. The writer is the pump with a stream as its consumer and the file sink
//! whose journal records written lines.

mod api;
mod backpressure;
mod reader;
mod resuming;
mod stored;

pub use api::routes;
pub use backpressure::Backpressure;
pub use reader::{Reader, Settings, Start};
pub use stored::{Shown, Stored};
