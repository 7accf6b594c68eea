//! One message is one line: characters that would end, hide or forge a line are escaped.
//!
//! `\n \r \t \0 \\`, `\u{…}` for other control and line-separating characters, `\xNN` for bytes
//! that are not UTF-8. Everything else, also outside ASCII, stays as it is.

use std::borrow::Cow;
use std::fmt::Write;

/// A message as part of a line.
pub fn escape(message: &[u8]) -> Cow<'_, str> {
    // Most messages are text in ASCII, which stays as it is.
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'\\';
    if message.iter().all(is_plain)
        && let Ok(text) = std::str::from_utf8(message)
    {
        return text.into();
    }
    let mut line = String::with_capacity(message.len() + 16);
    for chunk in message.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                '\0' => line.push_str("\\0"),
                '\\' => line.push_str("\\\\"),
                '\u{2028}' | '\u{2029}' => escape_code(&mut line, character),
                control if control.is_control() => escape_code(&mut line, control),
                plain => line.push(plain),
            }
        }
        for byte in chunk.invalid() {
            write!(line, "\\x{byte:02x}").expect("writing to a string cannot fail");
        }
    }
    line.into()
}

fn escape_code(line: &mut String, character: char) {
    write!(line, "\\u{{{:x}}}", u32::from(character)).expect("writing to a string cannot fail");
}

/// The message that [`escape`] was given; `None` for a text that it did not make.
pub fn unescape(line: &str) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        message.extend_from_slice(plain.as_bytes());
        let kind = escaped.chars().next()?;
        rest = &escaped[kind.len_utf8()..];
        match kind {
            'n' => message.push(b'\n'),
            'r' => message.push(b'\r'),
            't' => message.push(b'\t'),
            '0' => message.push(0),
            '\\' => message.push(b'\\'),
            'x' => {
                message.push(u8::from_str_radix(rest.get(..2)?, 16).ok()?);
                rest = &rest[2..];
            }
            'u' => {
                let (code, behind) = rest.strip_prefix('{')?.split_once('}')?;
                let character = char::from_u32(u32::from_str_radix(code, 16).ok()?)?;
                message.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = behind;
            }
            _ => return None,
        }
    }
    message.extend_from_slice(rest.as_bytes());
    Some(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_text_stays_and_the_rest_is_visible() {
        for (message, line) in [
            (&b"hello, world"[..], "hello, world"),
            ("Grüße 🚢 | \"x\"".as_bytes(), "Grüße 🚢 | \"x\""),
            (b"a\nb\r\n\0\t\\", r"a\nb\r\n\0\t\\"),
            (b"\x1b[2J\x7f", r"\u{1b}[2J\u{7f}"),
            ("\u{2028}\u{85}".as_bytes(), r"\u{2028}\u{85}"),
            (b"\xff\xfe", r"\xff\xfe"),
        ] {
            assert_eq!(escape(message), line);
        }
        assert_eq!(unescape(r"\q"), None);
        assert_eq!(unescape("\\"), None);
    }

    proptest! {
        #[test]
        fn every_message_is_one_line_and_reads_back(message in prop::collection::vec(any::<u8>(), 0..300)) {
            let line = escape(&message);
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert_eq!(unescape(&line), Some(message));
        }
    }
}
