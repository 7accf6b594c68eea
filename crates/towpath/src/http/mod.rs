//! The HTTP edge: an accept loop with deadlines, limits before work, errors with the caller's half of the story.

pub mod accept;
pub mod answer;
pub mod body;
mod client;
mod connection;
pub mod descriptors;
pub mod error;
pub mod extract;
pub mod guard;
mod hosts;
pub mod json;
mod middleware;
pub mod net;
pub mod preconditions;
mod server;
mod sites;
mod socket;
pub mod tls;

pub use body::Intake;
pub use client::{client, client_of, trusting_also};
pub use hosts::Hosts;
pub use middleware::{Asking, BodyLimit, Edge, is_probe, wrap};
pub use server::{Limits, Patience, Peer, serve};
pub use sites::Sites;

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
