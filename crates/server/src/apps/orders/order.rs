//! An order in its forms: the client's request, the message on the queue, the event.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::http::json::Loose;

/// Longest order id and SKU in bytes: keys are made of them.
const MAX_ID_BYTES: usize = 256;

/// Longest mail address. Source: RFC 5321, section 4.5.3.1.3, without the angle brackets.
const MAX_EMAIL_BYTES: usize = 254;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) id: String,
    pub(super) sku: String,
    /// 1 or more.
    pub(super) qty: i64,
    /// Where its notification goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
}

/// Why an order is invalid; the display is the contract's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No JSON object, or a field of another type.
    Json,
    /// An id or SKU that is empty or over 256 bytes, or a quantity under 1.
    Fields,
}

impl Refusal {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "Invalid JSON",
            Self::Fields => "Missing or invalid fields",
        }
    }
}

impl Order {
    /// Reads the first JSON value of a text; unknown fields are ignored, and names compare without regard to case,
    /// as existing producers expect.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        let mut values =
            serde_json::Deserializer::from_slice(text).into_iter::<Option<Loose<'_>>>();
        let object = values.next().ok_or(Refusal::Json)?;
        // `null` is an object without fields.
        let object = object.map_err(|_| Refusal::Json)?.unwrap_or_default();
        let order = Self {
            id: field(&object, "id")?.unwrap_or_default(),
            sku: field(&object, "sku")?.unwrap_or_default(),
            qty: field(&object, "qty")?.unwrap_or_default(),
            email: field::<String>(&object, "email")?
                .or(field(&object, "user_email")?)
                .filter(|email| !email.is_empty()),
        };
        if fits(&order.id) && fits(&order.sku) && order.qty > 0 {
            Ok(order)
        } else {
            Err(Refusal::Fields)
        }
    }

    /// Whether its texts may be stored and mailed: no control characters, and an address that a mail server accepts.
    pub(super) fn is_clean(&self) -> bool {
        let texts = [Some(&self.id), Some(&self.sku), self.email.as_ref()];
        let mut texts = texts.into_iter().flatten();
        let is_short = |email: &String| email.len() <= MAX_EMAIL_BYTES;
        !texts.any(|text| text.contains(char::is_control))
            && self.email.as_ref().is_none_or(is_short)
    }

    /// The message on the queue: `{"id","sku","qty"}`, and `email` when there is one.
    pub(super) fn payload(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("texts and a number are always JSON")
            .into()
    }

    /// Hash of the contents of an order, 32 hexadecimal digits.
    pub(super) fn hash(&self) -> String {
        hex::encode(fingerprint(&self.payload()))
    }
}

/// Whether a text may be an order id or a SKU.
pub(super) fn fits(text: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&text.len())
}

/// The first sixteen bytes of the SHA-256.
pub(super) fn fingerprint(bytes: &[u8]) -> [u8; 16] {
    let digest = digest(&SHA256, bytes);
    let mut first = [0; 16];
    first.copy_from_slice(&digest.as_ref()[..16]);
    first
}

fn field<'a, T: Deserialize<'a>>(object: &Loose<'a>, name: &str) -> Result<Option<T>, Refusal> {
    match object.get(name) {
        None => Ok(None),
        // `null` is a field that is not there.
        Some(value) => serde_json::from_str(value.get()).map_err(|_| Refusal::Json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_existing_clients_expect() {
        let order = |email: Option<&str>| Order {
            id: "o1".to_owned(),
            sku: "case".to_owned(),
            qty: 2,
            email: email.map(str::to_owned),
        };
        for (text, expected) in [
            (r#"{"id":"o1","sku":"case","qty":2}"#, Ok(order(None))),
            (
                r#"{"id":"o1","sku":"case","qty":2,"x":[]} trailing"#,
                Ok(order(None)),
            ),
            (r#"{"ID":"o1","Sku":"case","QTY":2}"#, Ok(order(None))),
            (
                r#"{"id":"o1","Email":"","sku":"case","qty":2,"user_email":"a@b"}"#,
                Ok(order(None)),
            ),
            (
                r#"{"id":"o1","Email":"a@b","sku":"case","qty":2,"user_email":"a@b"}"#,
                Ok(order(Some("a@b"))),
            ),
            ("", Err(Refusal::Json)),
            ("nothing", Err(Refusal::Json)),
            ("[]", Err(Refusal::Json)),
            (r#"{"id":1,"sku":"case","qty":2}"#, Err(Refusal::Json)),
            (r#"{"id":"o1","sku":"case","qty":2.5}"#, Err(Refusal::Json)),
            (r#"{"id":"o1","sku":"case","qty":"2"}"#, Err(Refusal::Json)),
            ("null", Err(Refusal::Fields)),
            (r#"{"id":null,"sku":"case","qty":1}"#, Err(Refusal::Fields)),
            ("{}", Err(Refusal::Fields)),
            (r#"{"id":"","sku":"case","qty":2}"#, Err(Refusal::Fields)),
            (r#"{"id":"o1","sku":"case","qty":0}"#, Err(Refusal::Fields)),
            (r#"{"id":"o1","sku":"case","qty":-1}"#, Err(Refusal::Fields)),
        ] {
            assert_eq!(Order::parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn texts_that_cannot_be_mailed_are_not_clean() {
        let order = |id: &str, sku: &str, email: &str| Order {
            id: id.to_owned(),
            sku: sku.to_owned(),
            qty: 1,
            email: Some(email.to_owned()),
        };
        assert!(order("o1", "case", &"a".repeat(254)).is_clean());
        for unclean in [
            order("o\n1", "case", "a@b"),
            order("o1", "case\u{1b}[2J", "a@b"),
            order("o1", "case", "a@b\r\nBcc: c@d"),
            order("o1", "case", &"a".repeat(255)),
        ] {
            assert!(!unclean.is_clean(), "{unclean:?}");
        }
    }

    #[test]
    fn the_hash_depends_on_the_contents() {
        let parse = |text: &str| Order::parse(text.as_bytes()).unwrap().hash();
        let one = parse(r#"{"id":"o1","sku":"case","qty":2}"#);
        assert_eq!(
            one,
            parse(r#"{ "qty":2, "sku":"case", "id":"o1", "new":1 }"#)
        );
        assert_ne!(one, parse(r#"{"id":"o1","sku":"case","qty":3}"#));
        assert_eq!(one.len(), 32);
    }
}
