//! Sources: where data enters by itself.

mod tail;
mod wake;

pub use tail::{Chunk, Limits, Line, Position, Tail};
pub use wake::Wake;
