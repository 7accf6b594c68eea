//! The HTTP edge: an accept loop with deadlines, limits before work, errors with the caller's half of the story.

pub mod accept;
pub mod answer;
pub mod body;
mod client;
mod connection;
mod cors;
pub mod descriptors;
pub mod error;
pub mod guard;
pub mod json;
mod middleware;
pub mod net;
mod page;
mod segment;
mod server;
mod socket;
pub mod tls;

pub use body::Intake;
pub use client::{client, client_of, trusting_also};
pub use cors::Cors;
pub use middleware::{BodyLimit, Edge, wrap};
pub(crate) use segment::{Segment, segment};
pub use server::{Limits, Patience, Peer, serve};

/// A text as one part of a URL: a segment of its path, a value of its query, a password.
pub(crate) fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
