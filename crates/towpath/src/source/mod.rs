//! Sources: where data enters by itself.

mod tail;

pub use tail::{Chunk, Limits, Line, Position, Tail};
