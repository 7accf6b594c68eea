//! The HTTP edge: an accept loop with deadlines, limits before work, errors with the caller's half of the story.

pub mod body;
mod connection;
pub mod descriptors;
pub mod error;
pub mod guard;
mod middleware;
pub mod net;
mod server;
mod socket;
pub mod tls;

pub use body::Intake;
pub use middleware::{BodyLimit, Edge, wrap};
pub use server::{Limits, Patience, Peer, serve};
