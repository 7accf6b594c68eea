//! Durations in the parameters of a URL.

use std::time::Duration;

use towpath_core::{Error, Result};

/// `500ms`, `5s`, `2m`, `1h`.
pub(crate) fn parse(name: &str, text: &str, least: Duration, most: Duration) -> Result<Duration> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let found = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .filter(|_| unit > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| {
            Error::invalid(format!(
                "invalid duration `{text}` for `{name}`; expected e.g. `{name}=5s`"
            ))
        })?;
    if !(least..=most).contains(&found) {
        return Err(Error::invalid(format!(
            "`{name}={text}` is out of range; expected {least:?} to {most:?}"
        )));
    }
    Ok(found)
}
