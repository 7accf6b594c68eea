//! The HTTP edge: an accept loop with deadlines, limits before work, errors with the caller's half of the story.

pub mod accept;
mod batch_cost;
pub mod body;
mod client_certificate;
mod connection;
mod cors;
mod crowd;
pub mod error;
pub mod extract;
mod hangup;
mod hosts;
pub mod json;
mod middleware;
mod page;
pub mod preconditions;
mod refusal;
pub mod rlimit;
mod segment;
mod server;
mod sites;
mod socket;
mod streams;
pub mod tls;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub use batch_cost::BatchCost;
pub use body::BodyReader;
pub use client_certificate::ClientCertificate;
pub use cors::Cors;
pub use crowd::{ClientLimit, client_block};
pub use hangup::Hangup;
pub use hosts::Hosts;
pub use middleware::{Asking, BodyLimit, InFlight, RequestLayer, is_probe, wrap};
pub(crate) use segment::{Segment, segment};
pub use server::{Limits, Peer, Timeouts, serve};
pub use sites::Sites;

/// Bytes that are encoded. Source: RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A text as one part of a URL: a segment of its path, a value of its query, a password.
pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The text that [`encoded`] made; `None` when it is not the encoding of a text.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_text_is_decoded() {
        for text in ["", "plain", "a b,c=d%", "Zoë/ä?#"] {
            assert_eq!(decoded(&encoded(text)).as_deref(), Some(text));
        }
        for wrong in ["%", "%4", "%zz", "%+1", "%ff"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }
}
