//! Percent-encoding in the parts of a URL (RFC 3986, section 2.1).

use towpath_core::{Error, Result};

/// `%40` becomes `@`.
pub(crate) fn decode(text: &str) -> Result<String> {
    let wrong =
        || Error::invalid("a `%` in the URL is not followed by two hexadecimal digits of UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, after @ ..] = rest else {
            return Err(wrong());
        };
        rest = after;
        let digit = |byte: &u8| {
            char::from(*byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        bytes.push(
            digit(high)
                .zip(digit(low))
                .map(|(high, low)| high * 16 + low)
                .ok_or_else(wrong)?,
        );
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}
