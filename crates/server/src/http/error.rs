//! Error responses.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::json;
use towpath_core::{Error, ErrorKind};

use super::accept;

const PROBLEM_JSON: &str = "application/problem+json";

const JSON: &str = "application/json";

/// Why a request was not served. As a response it has no body yet: the edge writes it, in the [`Form`] of the listener.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    /// The error code, in the forms that have one; by default that of the status.
    code: Option<&'static str>,
    detail: String,
    retry_after: Option<u64>,
    /// Existing clients read the sentence alone.
    is_text: bool,
}

/// Form of an app's problems, whichever layer finds them. Clients that accept RFC 9457 get that from every app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The sentence and a newline, as existing clients expect it; RFC 9457 for those that prefer JSON.
    Text,
    /// RFC 9457.
    Json,
    /// `error`, a code in lower case, and `message`. Source: the reference system's limits.
    Coded,
    /// The envelope of the fleet app, its code in capitals. Source: the reference system.
    Envelope,
}

impl Form {
    /// The form for a client with these headers.
    pub(super) fn accepted(self, headers: &HeaderMap) -> Self {
        let prefers_json = || {
            accept::names(headers, JSON)
                && accept::weight(headers, JSON) > accept::weight(headers, "text/plain")
        };
        match accept::names(headers, PROBLEM_JSON) || self == Self::Text && prefers_json() {
            true => Self::Json,
            false => self,
        }
    }
}

/// RFC 9457, with the id that the log knows the request by.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    instance: &'a str,
    request_id: &'a str,
}

impl Problem {
    /// A problem with this status and the sentence for the caller.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            code: None,
            detail: detail.into(),
            retry_after: None,
            is_text: false,
        }
    }

    /// The request is wrong: 400.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The same under a code of its own.
    #[must_use]
    pub const fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The sentence alone where the app has a form of its own, as existing clients expect it.
    #[must_use]
    pub const fn text(mut self) -> Self {
        self.is_text = true;
        self
    }

    /// The sentence for the caller.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The status of the answer.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Says when to try again, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Writes the body of `response`; its other headers stay.
    pub(super) fn write(self, form: Form, path: &str, request_id: &str, response: &mut Response) {
        let form = match form {
            Form::Coded if self.is_text => Form::Text,
            form => form,
        };
        let code = self.code.unwrap_or_else(|| code(self.status));
        let (kind, text) = match form {
            Form::Text => ("text/plain; charset=utf-8", self.detail + "\n"),
            Form::Json => {
                let document = Document {
                    kind: "about:blank",
                    title: self.status.canonical_reason().unwrap_or("error"),
                    status: self.status.as_u16(),
                    detail: &self.detail,
                    instance: path,
                    request_id,
                };
                let text = serde_json::to_string(&document);
                (PROBLEM_JSON, text.unwrap_or(self.detail) + "\n")
            }
            Form::Coded => {
                let code = code.to_ascii_lowercase();
                let body = json!({ "error": code, "message": self.detail });
                (JSON, format!("{body}\n"))
            }
            Form::Envelope => {
                let body = json!({
                    "request_id": request_id,
                    "status": self.status.as_u16(),
                    "success": false,
                    "message": self.detail,
                    "error": { "code": code, "message": self.detail },
                });
                (JSON, format!("{body}\n"))
            }
        };
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        *response.body_mut() = Body::from(text);
    }
}

/// The code of a problem that has none of its own.
const fn code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "FORBIDDEN",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::METHOD_NOT_ALLOWED => "METHOD_NOT_ALLOWED",
        StatusCode::REQUEST_TIMEOUT => "REQUEST_TIMEOUT",
        StatusCode::CONFLICT => "CONFLICT",
        StatusCode::PRECONDITION_FAILED => "PRECONDITION_FAILED",
        StatusCode::PAYLOAD_TOO_LARGE => "PAYLOAD_TOO_LARGE",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "UNSUPPORTED_MEDIA_TYPE",
        StatusCode::MISDIRECTED_REQUEST => "MISDIRECTED_REQUEST",
        StatusCode::UNPROCESSABLE_ENTITY => "UNPROCESSABLE_ENTITY",
        StatusCode::TOO_MANY_REQUESTS => "TOO_MANY_REQUESTS",
        StatusCode::INTERNAL_SERVER_ERROR => "INTERNAL_ERROR",
        StatusCode::NOT_IMPLEMENTED => "NOT_IMPLEMENTED",
        StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
        _ => "INVALID_REQUEST",
    }
}

/// The one mapping of kinds to statuses, for callers whose names, keys and numbers go to a backend as they came.
fn status(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::Unavailable if error.retry_after().is_some() => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for Problem {
    /// An app checks a request before it asks a backend, so an error of a backend is never the client's mistake,
    /// whatever its kind: 429 at a limit of ours, else 503.
    fn from(error: Error) -> Self {
        let status = match error.retry_after() {
            Some(_) => StatusCode::TOO_MANY_REQUESTS,
            None => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::of(error, status)
    }
}

impl Problem {
    /// The answer to an operator, whose names, keys and numbers go to a backend as they came: with every cause.
    pub fn by_kind(error: Error) -> Self {
        let (status, detail) = (status(&error), error.chain());
        Self {
            detail,
            ..Self::of(error, status)
        }
    }

    /// The caller gets the sentence, the log the causes behind it.
    fn of(error: Error, status: StatusCode) -> Self {
        if status.is_server_error() {
            crate::telemetry::log_failure("request failed", &error);
        }
        Self {
            retry_after: error.retry_after().map(|after| after.as_secs().max(1)),
            ..Self::new(status, error.to_string())
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        // An unavailable backend is tried again within a second.
        let unavailable = self.status == StatusCode::SERVICE_UNAVAILABLE;
        let retry_after = self.retry_after.or(unavailable.then_some(1));
        if let Some(seconds) = retry_after {
            let value = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// A plain text answer that ends with a newline, as the reference systems give it.
pub fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text = text.into();
    text.push('\n');
    (
        status,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        text,
    )
        .into_response()
}
