//! Formats a message as a line.

use jiff::tz::TimeZone;

use super::escape::escape;

/// Line formats of the file and stdout sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LineFormat {
    /// `<RFC 3339 with nanoseconds> | <message>`; characters that would end or hide a line are escaped.
    #[default]
    Stamped,
    /// The reference system's: the local time, ` | ` and the message, in which nothing but line breaks is escaped.
    Reference,
    /// The message as it is; one that contains a newline is abandoned.
    Raw,
}

impl LineFormat {
    /// Prefix of the lines of a batch that is delivered at `now`.
    pub fn head(self, now: jiff::Timestamp) -> String {
        match self {
            Self::Stamped => format!("{now} | "),
            Self::Reference => format!("{} | ", local(now, &TimeZone::system())),
            Self::Raw => String::new(),
        }
    }

    /// Appends the line of a message, its newline included.
    ///
    /// - `head`: of [`LineFormat::head`].
    ///
    /// # Errors
    /// Why this message cannot be a line; nothing was appended then.
    pub fn write(self, message: &[u8], head: &str, text: &mut Vec<u8>) -> Result<(), String> {
        if self == Self::Raw && message.contains(&b'\n') {
            return Err("holds a newline, and a raw line cannot".to_owned());
        }
        text.extend_from_slice(head.as_bytes());
        match self {
            Self::Stamped => text.extend_from_slice(escape(message).as_bytes()),
            Self::Reference => {
                for byte in message {
                    match byte {
                        b'\n' => text.extend_from_slice(b"\\n"),
                        b'\r' => text.extend_from_slice(b"\\r"),
                        _ => text.push(*byte),
                    }
                }
            }
            Self::Raw => text.extend_from_slice(message),
        }
        text.push(b'\n');
        Ok(())
    }
}

/// RFC 3339 with nanoseconds, trailing zeros trimmed, in a time zone; `Z` where that is UTC, as Go writes it.
fn local(now: jiff::Timestamp, zone: &TimeZone) -> String {
    let there = now.to_zoned(zone.clone());
    match there.offset().is_zero() {
        true => now.to_string(),
        false => there.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_line_escapes_line_breaks_alone() {
        let now = jiff::Timestamp::from_nanosecond(1_795_245_330_120_000_000).unwrap();
        assert_eq!(local(now, &TimeZone::UTC), "2026-11-21T07:15:30.12Z");
        let zone = TimeZone::fixed(jiff::tz::offset(5));
        assert_eq!(local(now, &zone), "2026-11-21T12:15:30.12+05:00");
        let whole = jiff::Timestamp::from_second(1_795_245_330).unwrap();
        assert_eq!(local(whole, &zone), "2026-11-21T12:15:30+05:00");
        let message = b"C:\\temp\t{\"a\":\"b\\\"c\"}\x1b\xff\r\nforged";
        let mut text = Vec::new();
        LineFormat::Reference
            .write(message, &LineFormat::Reference.head(now), &mut text)
            .unwrap();
        let rest = text.split(|byte| *byte == b'|').nth(1).unwrap();
        assert_eq!(rest, b" C:\\temp\t{\"a\":\"b\\\"c\"}\x1b\xff\\r\\nforged\n");
    }

    #[test]
    fn a_message_is_one_line_in_either_form() {
        let now = jiff::Timestamp::from_nanosecond(1_795_245_330_000_000_001).unwrap();
        for (format, message, line) in [
            (
                LineFormat::Stamped,
                &b"a\nb"[..],
                Ok("2026-11-21T07:15:30.000000001Z | a\\nb\n".as_bytes()),
            ),
            (LineFormat::Raw, b"a\\\t\xff", Ok(b"a\\\t\xff\n")),
            (LineFormat::Raw, b"", Ok(b"\n")),
            (
                LineFormat::Raw,
                b"a\nb",
                Err("holds a newline, and a raw line cannot".to_owned()),
            ),
        ] {
            let mut text = Vec::new();
            let written = format.write(message, &format.head(now), &mut text);
            let written = written.map(|()| &text[..]);
            assert_eq!(written, line, "{format:?} {message:?}");
        }
    }
}
