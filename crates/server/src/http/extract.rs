//! Extractors of handlers, with refusals in our own words.
//!
//! axum's extractors answer with sentences of libraries and accept unknown input; these do neither.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Problem;
use super::json;
use crate::config::did_you_mean;

/// The parameters of a query string. A struct that denies unknown fields refuses parameters that it does not know.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Self, Problem> {
        if !is_encoded(head.uri.query().unwrap_or_default()) {
            let reason = "the query string has a `%` without two hexadecimal digits";
            return Err(Problem::invalid(reason));
        }
        let parsed = axum::extract::Query::<T>::try_from_uri(&head.uri);
        parsed.map(|query| Self(query.0)).map_err(|rejection| {
            let cause = std::error::Error::source(&rejection);
            let reason = cause.map_or_else(|| rejection.to_string(), ToString::to_string);
            Problem::invalid(misread(&reason))
        })
    }
}

/// The parameters of a path.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, Problem> {
        let parsed = axum::extract::Path::<T>::from_request_parts(head, state).await;
        parsed
            .map(|path| Self(path.0))
            .map_err(|_| Problem::invalid("the path does not decode to UTF-8"))
    }
}

/// A body that is JSON; as a response, axum's.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(is_json) {
            let reason = "the body must be JSON; send `Content-Type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
        }
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|_| Problem::invalid("failed to read body"))?;
        json::value(&body).map(Self).map_err(|refusal| {
            let status = match refusal.is_json {
                true => StatusCode::UNPROCESSABLE_ENTITY,
                false => StatusCode::BAD_REQUEST,
            };
            Problem::new(status, refusal.reason)
        })
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    /// With a newline at its end, as a terminal wants it.
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(mut text) => {
                text.push(b'\n');
                let kind = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Err(error) => {
                tracing::error!(%error, "answer not encoded as JSON");
                let reason = "the answer cannot be written as JSON; see the log";
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, reason).into_response()
            }
        }
    }
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.ends_with("+json")
}

/// Refuses a query string where there are no parameters.
///
/// # Errors
/// The problem names the first parameter.
pub(super) fn no_query(query: &str) -> Result<(), Problem> {
    let first = query.split('&').find(|part| !part.is_empty());
    let Some(first) = first else { return Ok(()) };
    let name = first.split('=').next().unwrap_or_default();
    let reason = format!("unknown query parameter `{name}`; this route has none");
    Err(Problem::invalid(reason))
}

/// Whether every `%` of a query string begins an escape.
fn is_encoded(query: &str) -> bool {
    let mut after = query.split('%').skip(1);
    after.all(|text| {
        let digits = text.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// The sentence for a parameter that serde refuses: "unknown field `a`, expected `b` or `c`", "limit: invalid digit found
/// in string".
fn misread(reason: &str) -> String {
    let mut quoted = reason.split('`').skip(1).step_by(2);
    let first = quoted.next().unwrap_or_default();
    if let Some(begin) = reason.find("unknown field") {
        let mut quoted = reason[begin..].split('`').skip(1).step_by(2);
        let name = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let mut hint = did_you_mean(name, known.iter().copied());
        if hint.is_empty() && !known.is_empty() {
            hint = format!("; known: `{}`", known.join("`, `"));
        }
        return format!("unknown query parameter `{name}`{hint}");
    }
    if reason.contains("duplicate field") {
        return format!("query parameter `{first}` is given twice");
    }
    if reason.contains("missing field") {
        return format!("query parameter `{first}` is required");
    }
    let Some((name, reason)) = reason.split_once(": ") else {
        return format!("the query string cannot be read: {reason}");
    };
    let lower = reason.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let expected = if has(&["uuid", "urn"]) {
        "must be a UUID"
    } else if has(&["`true` or `false`"]) {
        "must be `true` or `false`"
    } else if has(&["digit", "integer", "too large", "too small"]) {
        "must be a whole number"
    } else {
        // A sentence of ours names the parameter.
        return match reason.starts_with(&format!("`{name}`")) {
            true => format!("query parameter {reason}"),
            false => format!("query parameter `{name}`: {reason}"),
        };
    };
    format!("query parameter `{name}` {expected}")
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde::Deserialize;
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Sample {
        limit: Option<usize>,
        after: Option<Uuid>,
        verbose: Option<bool>,
        from: u64,
    }

    async fn refusal(query: &str) -> String {
        let request = Request::builder().uri(format!("/x?{query}"));
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        match Query::<Sample>::from_request_parts(&mut head, &()).await {
            Ok(query) => format!("taken: {query:?}"),
            Err(problem) => problem.detail().to_owned(),
        }
    }

    #[tokio::test]
    async fn parameters_are_refused_in_our_words() {
        for (query, expected) in [
            (
                "from=1&limt=3",
                "unknown query parameter `limt`; did you mean `limit`?",
            ),
            (
                "colour=1",
                "unknown query parameter `colour`; known: `limit`, `after`, `verbose`, `from`",
            ),
            ("from=1&from=2", "query parameter `from` is given twice"),
            ("", "query parameter `from` is required"),
            (
                "from=1&limit=zz",
                "query parameter `limit` must be a whole number",
            ),
            ("from=-1", "query parameter `from` must be a whole number"),
            (
                "from=99999999999999999999",
                "query parameter `from` must be a whole number",
            ),
            ("from=1&after=zz", "query parameter `after` must be a UUID"),
            (
                "from=1&verbose=2",
                "query parameter `verbose` must be `true` or `false`",
            ),
            (
                "from=%zz",
                "the query string has a `%` without two hexadecimal digits",
            ),
            (
                "from=1%",
                "the query string has a `%` without two hexadecimal digits",
            ),
        ] {
            assert_eq!(refusal(query).await, expected, "{query}");
        }
        assert!(refusal("from=%31&limit=3").await.starts_with("taken"));
    }
}
