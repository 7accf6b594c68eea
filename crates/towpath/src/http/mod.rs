//! The HTTP edge: an accept loop with deadlines, limits before work, errors with the caller's half of the story.

pub mod body;
pub mod error;
mod middleware;
mod server;
pub mod tls;

pub use middleware::{Edge, wrap};
pub use server::{Limits, serve};
