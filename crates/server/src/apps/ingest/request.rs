//! Parses requests into messages.

use bytes::Bytes;

use crate::http::json::{self, Loose};

/// Why a body is invalid: the text of the 400 response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

impl Refusal {
    fn required() -> Self {
        Self("message is required".to_owned())
    }
}

/// The `message` of a JSON object, without regard to case; unknown fields are skipped, as clients of the plain API expect.
fn field(body: &[u8]) -> Result<Option<String>, json::Refusal> {
    // `null` is an object without a message.
    let object: Option<Loose<'_>> = json::value(body)?;
    let message = object.and_then(|object| object.get("message"));
    message.map_or(Ok(None), |message| json::field("message", message))
}

/// The message in a body: the trimmed text, or the trimmed `message` of a JSON object.
pub(super) fn message(content_type: Option<&str>, body: &Bytes) -> Result<Bytes, Refusal> {
    if !is_json(content_type) {
        return non_empty(trim(body));
    }
    let message = field(body).map_err(|refusal| {
        let reason = refusal.reason.trim_start_matches("the body is not JSON: ");
        Refusal(format!("invalid JSON body: {reason}"))
    })?;
    text(message)
}

/// The messages of an NDJSON body, one a line; blank lines are skipped.
///
/// A bad line refuses the whole batch, so that a client never has to find out which part was stored.
pub(super) fn batch(
    body: &Bytes,
    max_messages: usize,
    max_bytes: usize,
) -> Result<Vec<Bytes>, Refusal> {
    let mut messages = Vec::new();
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let at = |refusal: Refusal| Refusal(format!("line {}: {}", index + 1, refusal.0));
        let parsed = match line.trim_ascii_start().first() {
            Some(b'"') => json::value(line).map(Some),
            _ => field(line),
        };
        let malformed = r#"not a JSON string or an object with a string "message""#;
        let message = parsed
            .map_err(|_| Refusal(malformed.to_owned()))
            .and_then(text)
            .map_err(at)?;
        if message.len() > max_bytes {
            return Err(at(Refusal(format!(
                "message is over the limit of {max_bytes} bytes"
            ))));
        }
        if messages.len() == max_messages {
            return Err(at(Refusal(format!(
                "a batch holds at most {max_messages} messages"
            ))));
        }
        messages.push(message);
    }
    if messages.is_empty() {
        Err(Refusal::required())
    } else {
        Ok(messages)
    }
}

/// Any bytes as each kind of body, for the fuzz target: accepted messages are within the limits, and trimmed.
#[cfg(fuzzing)]
pub fn decode_anything(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    for content_type in [None, Some("application/json")] {
        if let Ok(message) = message(content_type, &body) {
            assert!(!message.is_empty() && trim(&message) == message);
        }
    }
    if let Ok(messages) = batch(&body, 100, 1000) {
        assert!((1..=100).contains(&messages.len()));
        assert!(
            messages
                .iter()
                .all(|one| (1..=1000).contains(&one.len()) && trim(one) == *one)
        );
    }
}

fn is_json(content_type: Option<&str>) -> bool {
    content_type.is_some_and(|value| value.to_ascii_lowercase().contains("application/json"))
}

fn text(message: Option<String>) -> Result<Bytes, Refusal> {
    let message = message.ok_or_else(Refusal::required)?;
    non_empty(trim(&Bytes::from(message)))
}

fn non_empty(message: Bytes) -> Result<Bytes, Refusal> {
    if message.is_empty() {
        Err(Refusal::required())
    } else {
        Ok(message)
    }
}

/// Trims white space as text where the body is UTF-8, ASCII white space where it is not.
fn trim(body: &Bytes) -> Bytes {
    match std::str::from_utf8(body) {
        Ok(text) => body.slice_ref(text.trim().as_bytes()),
        Err(_) => body.slice_ref(body.trim_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Option<&str> = Some("application/JSON; charset=utf-8");

    #[test]
    fn bodies_are_read_as_existing_clients_expect() {
        for (content_type, body, expected) in [
            (None, "  hello \n", Ok("hello")),
            (
                Some("application/x-www-form-urlencoded"),
                "hello from curl",
                Ok("hello from curl"),
            ),
            (None, r#"{"message":"x"}"#, Ok(r#"{"message":"x"}"#)),
            (
                JSON,
                r#"{"message":" hello json ","other":1}"#,
                Ok("hello json"),
            ),
            (JSON, r#"{"Message":"x"}"#, Ok("x")),
            (JSON, r#"{"MESSAGE":"x","message":"y"}"#, Ok("y")),
            (JSON, "null", Err("message is required")),
            (JSON, "{}", Err("message is required")),
            (JSON, r#"{"message":"  "}"#, Err("message is required")),
            (None, "", Err("message is required")),
            (None, " \n\t", Err("message is required")),
        ] {
            let got = message(content_type, &Bytes::from(body));
            let expected = expected
                .map(Bytes::from)
                .map_err(|text: &str| Refusal(text.to_owned()));
            assert_eq!(got, expected, "{content_type:?} {body}");
        }
    }

    #[test]
    fn broken_json_is_refused_instead_of_stored_as_text() {
        for body in [
            "{",
            r#"{"message":1}"#,
            "[]",
            "hello",
            r#"{"message":"x"}}"#,
        ] {
            let refusal = message(JSON, &Bytes::from(body)).unwrap_err();
            assert!(
                refusal.0.starts_with("invalid JSON body: "),
                "{body}: {refusal:?}"
            );
        }
    }

    #[test]
    fn a_body_that_is_not_utf8_stays_as_it_is() {
        let body = Bytes::from_static(b" \xff\x00\xfe ");
        assert_eq!(
            message(None, &body).unwrap(),
            Bytes::from_static(b"\xff\x00\xfe")
        );
    }

    #[test]
    fn a_bad_line_refuses_the_batch_and_is_named() {
        let body = Bytes::from("\"one\"\n\n{\"message\":\"two\"}\r\n");
        assert_eq!(
            batch(&body, 10, 10).unwrap(),
            [Bytes::from("one"), Bytes::from("two")]
        );
        for (body, expected) in [
            (
                "\"one\"\ntwo\n",
                r#"line 2: not a JSON string or an object with a string "message""#,
            ),
            ("\"one\"\n\"\"\n", "line 2: message is required"),
            (
                "\"0123456789x\"",
                "line 1: message is over the limit of 10 bytes",
            ),
            (
                "\"1\"\n\"2\"\n\"3\"",
                "line 3: a batch holds at most 2 messages",
            ),
            ("\n\n", "message is required"),
        ] {
            assert_eq!(
                batch(&Bytes::from(body), 2, 10).unwrap_err().0,
                expected,
                "{body}"
            );
        }
    }
}
