//! The envelope that every answer of the fleet app has. Source: the reference system.

use crate::config::did_you_mean;
use crate::http::error::Problem;
use crate::http::extract::Json;
use crate::http::json;
use crate::telemetry::log_failure;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use towpath_core::{Error, ErrorKind};
use uuid::Uuid;

/// The public message about a store that is unavailable, full or broken.
const UNAVAILABLE: &str = "this cannot be done now; try again, and see the log for the reason";

/// A request that was not served.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// The answer of a handler.
pub(super) type Answer = Result<Response, Failure>;

impl Failure {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    /// The request makes no sense.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_REQUEST", message)
    }

    /// An invalid part of the request.
    pub(super) fn of_check(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Invalid => Self::invalid(error.to_string()),
            _ => Self::from(error),
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    }

    /// The same under another code.
    #[must_use]
    pub(super) const fn code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::new(problem.status(), "INVALID_REQUEST", problem.detail())
    }
}

impl From<Error> for Failure {
    /// A request is checked before a store is asked, so an error of the store is never the client's mistake, whatever
    /// its kind. Internal reasons go to the log.
    fn from(error: Error) -> Self {
        log_failure("request failed", &error);
        if error.kind() == ErrorKind::Corrupt {
            // Trying again reads the same.
            let (status, code) = (StatusCode::INTERNAL_SERVER_ERROR, "UNREADABLE");
            let text = "stored data cannot be read; see the log for the reason";
            return Self::new(status, code, text);
        }
        let text = error.unknown_or(UNAVAILABLE);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", text)
    }
}

impl IntoResponse for Failure {
    /// The edge writes the envelope, as it does for what never comes to a handler.
    fn into_response(self) -> Response {
        Problem::new(self.status, self.message)
            .code(self.code)
            .into_response()
    }
}

/// An answer with data.
pub(super) fn success(status: StatusCode, data: impl Serialize) -> Response {
    let data = serde_json::to_value(data).unwrap_or(Value::Null);
    let mut body = json!({
        "request_id": Uuid::now_v7(),
        "status": status.as_u16(),
        "success": true,
        "message": "success",
    });
    if !data.is_null() {
        body["data"] = data;
    }
    (status, Json(body)).into_response()
}

/// Parses a body.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    json::object(body).map_err(|refusal| Failure::invalid(refusal.reason))
}

/// Parses the body of another program. Unknown fields are ignored, as a newer version may send more, except those
/// that are written almost like a known one which is missing.
pub(super) fn parse_of_program<T: DeserializeOwned>(
    body: &Bytes,
    fields: &[&str],
) -> Result<T, Failure> {
    let read = parse(body)?;
    let all: serde_json::Map<String, Value> = parse(body)?;
    let is_there = |field: &str| all.keys().any(|name| name.eq_ignore_ascii_case(field));
    let missing = || fields.iter().copied().filter(|field| !is_there(field));
    for name in all.keys() {
        let is_known = fields.iter().any(|field| field.eq_ignore_ascii_case(name));
        let meant = did_you_mean(name, missing());
        if !is_known && !meant.is_empty() {
            return Err(Failure::invalid(format!("unknown field `{name}`{meant}")));
        }
    }
    Ok(read)
}

/// The data of an answer, ours or a reference system's; anything else is an error that quotes it.
pub(super) fn data<T: DeserializeOwned>(
    status: StatusCode,
    body: &[u8],
) -> towpath_core::Result<T> {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    if !status.is_success() {
        let message = answer["message"].as_str().unwrap_or("no reason given");
        let message: String = message.chars().take(200).collect();
        return Err(Error::unavailable(format!("answered {status}: {message}")));
    }
    serde_json::from_value(answer["data"].clone())
        .map_err(|error| Error::unavailable("answered something else").with_source(error))
}
