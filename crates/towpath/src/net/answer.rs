//! The meaning of an answer, or of a missing one, for the receiver's condition.

use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use reqwest::Url;
use towpath_core::address::host_shown;
use towpath_core::port::sink::Cause;
use towpath_core::{Clock, Error, ErrorKind};

pub use crate::shown_url::shown;

/// A request without an answer. Shows its innermost cause only: `Connection refused (os error 111)`.
#[derive(Debug)]
struct Unanswered(reqwest::Error);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut innermost: &dyn std::error::Error = &self.0;
        while let Some(cause) = innermost.source() {
            innermost = cause;
        }
        write!(f, "{innermost}")
    }
}

impl std::error::Error for Unanswered {}

/// The error of a request without an answer.
pub fn no_answer(error: reqwest::Error) -> Error {
    Error::unavailable("no answer").with_source(Unanswered(error.without_url()))
}

/// Progress of a request that ended in this error.
pub fn cause_of(error: &Error) -> Cause {
    if error.kind() == ErrorKind::Invalid {
        return Cause::Unreachable;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let unanswered = cause.downcast_ref::<Unanswered>();
        let request = unanswered.map(|one| &one.0);
        if let Some(request) = request.or_else(|| cause.downcast_ref()) {
            return match request.is_connect() {
                true => Cause::Unreachable,
                false => Cause::Failed,
            };
        }
        source = cause.source();
    }
    Cause::Failed
}

/// The time that an answer names for the next request: seconds, or a date in any of the forms of HTTP.
///
/// Source: RFC 9110, 10.2.3.
pub fn retry_after(headers: &HeaderMap, clock: &dyn Clock) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let since_epoch = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let now = Duration::from_millis(clock.now().as_millis());
    Some(since_epoch.saturating_sub(now))
}

/// The meaning of an answer for the destination; `None` when it is about the request.
pub fn unavailable(status: StatusCode) -> Option<Cause> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some(Cause::Overloaded),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Some(Cause::Failed)
        }
        _ => None,
    }
}

/// The server of a URL: its path may be the secret, as that of a webhook often is.
pub fn server_shown(url: &Url) -> String {
    host_shown(&shown(url))
}
