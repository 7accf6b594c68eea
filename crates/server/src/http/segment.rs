//! Names as segments of paths.
//!
//! Clients resolve the segments `.` and `..`, also encoded ones, before they send a path. A name of that form has a `~`
//! before it in a path; so has a name that already looks like that, and one `~` is removed again.
//!
//! Source: WHATWG URL standard, "single-dot URL path segment".

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::encoded;
use super::error::Problem;
use super::extract::Path;

/// A name as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let mark = if is_dots(name) { "~" } else { "" };
    format!("{mark}{}", encoded(name))
}

/// The name in the only segment of a path that is one.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await?;
        let name = text.strip_prefix('~').filter(|rest| is_dots(rest));
        Ok(Self(name.map_or_else(|| text.clone(), str::to_owned)))
    }
}

/// `.` or `..`, with or without marks.
fn is_dots(name: &str) -> bool {
    [".", ".."].contains(&name.trim_start_matches('~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_name_comes_through_a_path() {
        let router = axum::Router::new().route(
            "/v1/{name}",
            axum::routing::get(|Segment(name): Segment| async move { name }),
        );
        for name in [
            ".", "..", "~.", "~~..", "~", "...", "~a", "a.b", "a/b", "%2E", "é",
        ] {
            let url = format!("http://localhost/v1/{}", segment(name));
            // As a client has it.
            let url = reqwest::Url::parse(&url).unwrap();
            let request = http::Request::get(url.path()).body(axum::body::Body::empty());
            let answer = tower::ServiceExt::oneshot(router.clone(), request.unwrap());
            let body = answer.await.unwrap().into_body();
            let bytes = axum::body::to_bytes(body, 100).await.unwrap();
            assert_eq!(bytes, name.as_bytes(), "{url}");
        }
    }
}
