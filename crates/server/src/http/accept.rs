//! Content negotiation. Source: RFC 9110, section 12.5.1.

use http::{HeaderMap, header};

/// The weight that the client gives a media type, of a thousand; 1000 without an `Accept` header.
pub fn weight(headers: &HeaderMap, media_type: &str) -> u16 {
    let mut says = false;
    // The most specific range counts.
    let mut found = (0, 0);
    for range in headers.get_all(header::ACCEPT) {
        for range in range.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            says |= !name.is_empty();
            let specific = match specificity(name, media_type) {
                Some(specific) if specific >= found.0 => specific,
                _ => continue,
            };
            let quality = parts.find_map(|part| {
                let (name, value) = part.split_once('=')?;
                name.trim().eq_ignore_ascii_case("q").then_some(value)
            });
            found = (specific, quality.map_or(1000, thousandths));
        }
    }
    match says {
        true => found.1,
        false => 1000,
    }
}

/// Whether the client names this media type itself, and wants it.
pub fn names(headers: &HeaderMap, media_type: &str) -> bool {
    let names = |range: &str| {
        let name = range.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(media_type)
    };
    let ranges = headers.get_all(header::ACCEPT).iter();
    let mut ranges = ranges.flat_map(|range| range.to_str().unwrap_or_default().split(','));
    ranges.any(names) && weight(headers, media_type) > 0
}

fn specificity(range: &str, media_type: &str) -> Option<u8> {
    let kind = media_type.split('/').next().unwrap_or_default();
    match range.split_once('/')? {
        ("*", "*") => Some(1),
        (named, "*") if named.eq_ignore_ascii_case(kind) => Some(2),
        _ if range.eq_ignore_ascii_case(media_type) => Some(3),
        _ => None,
    }
}

/// A weight like `0.8`; one that cannot be read counts as none.
fn thousandths(text: &str) -> u16 {
    let weight = text.trim().parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1000"
    )]
    let whole = (weight * 1000.0) as u16;
    whole
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn accepting(value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn the_most_specific_range_counts_with_its_weight() {
        for (accept, media_type, weighs) in [
            ("application/json, text/plain, */*", "text/plain", 1000),
            ("text/*;q=0.3, text/html;q=0.7", "text/plain", 300),
            (
                "*/*, application/problem+json;q=0",
                "application/problem+json",
                0,
            ),
            ("Text/Plain; charset=utf-8; Q=0.25", "text/plain", 250),
            ("text/html", "text/plain", 0),
            ("", "text/plain", 1000),
        ] {
            assert_eq!(weight(&accepting(accept), media_type), weighs, "{accept}");
        }
        assert_eq!(weight(&HeaderMap::new(), "text/plain"), 1000);
    }

    #[test]
    fn only_its_own_name_names_a_type() {
        let problem = "application/problem+json";
        assert!(names(&accepting("application/Problem+JSON"), problem));
        assert!(!names(&accepting("*/*"), problem));
        assert!(!names(&accepting("application/problem+json;q=0"), problem));
    }
}
