//! Preconditions of requests. Source: RFC 9110, sections 8.8.3 and 13.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// Requirements of a client on the current version of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// It must be one of these.
    pub if_match: Option<Tags>,
    /// It must be none of these.
    pub if_none_match: Option<Tags>,
}

/// The entity tags in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any version that there is.
    Any,
    /// Those of the list, in its order.
    These(Vec<Tag>),
}

/// An entity tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// It names versions that mean the same, and not the same bytes.
    pub is_weak: bool,
    /// Text between the quotes. Existing agents send it without them.
    pub text: String,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet {
    /// `If-Match` names other versions.
    Match,
    /// `If-None-Match` names the current version.
    NoneMatch,
}

impl Preconditions {
    /// Those of a request. An invalid tag matches no version.
    pub fn of(headers: &HeaderMap) -> Self {
        Self {
            if_match: tags(headers, &header::IF_MATCH),
            if_none_match: tags(headers, &header::IF_NONE_MATCH),
        }
    }

    /// Whether there is any.
    pub const fn is_some(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some()
    }

    /// Compares with the tags of the current version: its own first, then others that name it too. `None` when there
    /// is no version.
    ///
    /// # Errors
    /// The precondition that is not met.
    pub fn check(&self, current: Option<&[&str]>) -> Result<(), Unmet> {
        if self
            .if_match
            .as_ref()
            .is_some_and(|tags| !tags.name(current, Strength::Strong))
        {
            return Err(Unmet::Match);
        }
        if self
            .if_none_match
            .as_ref()
            .is_some_and(|tags| tags.name(current, Strength::Weak))
        {
            return Err(Unmet::NoneMatch);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strength {
    Strong,
    Weak,
}

impl Tags {
    fn name(&self, current: Option<&[&str]>, strength: Strength) -> bool {
        let Some(current) = current else { return false };
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|tag| {
                (strength == Strength::Weak || !tag.is_weak) && current.contains(&tag.text.as_str())
            }),
        }
    }
}

/// The answer to a `GET` whose client has the current version: 304 with its tag.
pub fn not_modified(tag: &str) -> Response {
    with_tag(StatusCode::NOT_MODIFIED.into_response(), tag)
}

/// An answer that says its version; `tag` is without quotes.
pub fn with_tag(mut response: Response, tag: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The tags in every line of a header, which are one list; absent without the header.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Tags> {
    let mut found = None;
    for line in headers.get_all(name) {
        let tags = found.get_or_insert_with(Vec::new);
        let mut rest = String::from_utf8_lossy(line.as_bytes()).into_owned();
        loop {
            rest = rest.trim_start_matches([',', ' ', '\t']).to_owned();
            if rest.is_empty() {
                break;
            }
            let (tag, behind) = first(&rest);
            let behind = behind.to_owned();
            tags.push(tag);
            rest = behind;
        }
    }
    let is_any = headers
        .get(name)
        .is_some_and(|line| line.as_bytes().trim_ascii() == b"*");
    found.map(|tags| match is_any && tags.len() == 1 {
        true => Tags::Any,
        false => Tags::These(tags),
    })
}

/// The first tag of a list, and the rest. A quoted tag may have commas.
fn first(list: &str) -> (Tag, &str) {
    let (is_weak, list) = match list.strip_prefix("W/") {
        Some(rest) => (true, rest),
        None => (false, list),
    };
    let quoted = list.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let (text, behind) =
        quoted.unwrap_or_else(|| list.split_at(list.find(',').unwrap_or(list.len())));
    let text = if quoted.is_some() { text } else { text.trim() };
    let tag = Tag {
        is_weak,
        text: text.to_owned(),
    };
    (tag, behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[(&'static str, &str)]) -> Preconditions {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a header value"));
        }
        Preconditions::of(&headers)
    }

    #[test]
    fn a_change_goes_to_a_version_that_is_named() {
        for (value, is_met) in [
            ("\"7\"", true),
            ("7", true),
            ("\"1\", \"7\"", true),
            ("\"1\",,\"7\"", true),
            ("\"a,b\", \"7\"", true),
            ("*", true),
            ("W/\"7\"", false),
            ("\"1\"", false),
            ("\"07\"", false),
            ("\"+7\"", false),
            ("\" 7\"", false),
            ("\"*\"", false),
            ("*, \"1\"", false),
            ("\"7", false),
            ("", false),
        ] {
            let checked = of(&[("if-match", value)]).check(Some(&["7"]));
            assert_eq!(checked.is_ok(), is_met, "{value}");
        }
        let two_lines = of(&[("if-match", "\"1\""), ("if-match", "\"7\"")]);
        assert_eq!(two_lines.check(Some(&["7"])), Ok(()));
        assert_eq!(of(&[("if-match", "*")]).check(None), Err(Unmet::Match));
        assert_eq!(of(&[]).check(Some(&["7"])), Ok(()));
    }

    #[test]
    fn a_version_that_the_client_has_is_not_sent() {
        for (value, has_it) in [
            ("\"7\"", true),
            ("W/\"7\"", true),
            ("W/\"1\", W/\"7\"", true),
            ("*", true),
            ("\"1\"", false),
            ("", false),
        ] {
            let checked = of(&[("if-none-match", value)]).check(Some(&["7"]));
            assert_eq!(checked == Err(Unmet::NoneMatch), has_it, "{value}");
        }
        assert_eq!(of(&[("if-none-match", "*")]).check(None), Ok(()));
        let two_lines = of(&[("if-none-match", "\"1\""), ("if-none-match", "\"7\"")]);
        assert_eq!(two_lines.check(Some(&["7"])), Err(Unmet::NoneMatch));
        let other_name = of(&[("if-none-match", "3")]);
        assert_eq!(
            other_name.check(Some(&["e.3-abc", "3"])),
            Err(Unmet::NoneMatch)
        );
    }
}
