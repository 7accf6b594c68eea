//! One error type for every port, classified by the caller's next step.
//!
//! Each layer adds its context with [`ResultExt::context`] and keeps the
//! cause in `source()`; [`Error::chain`] prints the whole story once, at the
//! edge.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The result of every port method.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error: the caller's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Try again later; the only kind that is ever retried.
    Unavailable,
    /// Lost a race: a stale receipt, a failed compare-and-swap.
    Conflict,
    /// The named thing does not exist.
    NotFound,
    /// The request itself is wrong and stays wrong.
    Invalid,
    /// This backend does not offer it.
    Unsupported,
    /// Stored data does not match its checksum or its format.
    Corrupt,
}

impl ErrorKind {
    /// The lower-case word used in logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Invalid => "invalid",
            Self::Unsupported => "unsupported",
            Self::Corrupt => "corrupt",
        }
    }
}

/// An error with its kind, one sentence, and the cause behind it.
///
/// `Display` prints the sentence only: lower case, no full stop, values in
/// backticks, and a next step when there is one.
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    is_outcome_unknown: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            is_outcome_unknown: false,
            source: None,
        }
    }

    /// The backend did not answer; nothing is known to have happened.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// The backend took the call and did not confirm it in time: it may or may not have happened, and may still happen.
    ///
    /// Context added later keeps this sentence, because the client decides by it.
    pub fn outcome_unknown(message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            is_outcome_unknown: true,
            ..Self::unavailable(message)
        }
    }

    /// A limit of ours is reached (queue full, disk low) and nothing was
    /// stored; the caller may try again after the given time.
    pub fn overloaded(message: impl Into<Cow<'static, str>>, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::unavailable(message)
        }
    }

    /// Lost a race.
    pub fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// The named thing does not exist.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The request is wrong and stays wrong.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The backend does not offer this.
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Stored data is damaged.
    pub fn corrupt(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Keeps `source` as the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The class.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Delay before a retry; set exactly when a limit of ours was reached.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the call may have happened, or may still happen.
    pub const fn is_outcome_unknown(&self) -> bool {
        self.is_outcome_unknown
    }

    /// The contract's text of a failure; where the outcome is unknown, the client hears that as well.
    pub fn unknown_or(&self, text: &str) -> String {
        match self.is_outcome_unknown {
            true => format!("{text}: {}", self.message),
            false => text.to_owned(),
        }
    }

    /// The sentence and every cause behind it, joined by `: `, each once: many libraries repeat their cause.
    pub fn chain(&self) -> String {
        let mut text = self.message.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// Adds the context of this layer to an error of the layer below.
pub trait ResultExt<T> {
    /// Wraps the error in `message`, keeping its kind and its cause.
    fn context<M: Into<Cow<'static, str>>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<M: Into<Cow<'static, str>>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|mut error| {
            if error.is_outcome_unknown {
                error.message = format!("{}: {}", message().into(), error.message).into();
                return error;
            }
            Error {
                kind: error.kind,
                message: message().into(),
                retry_after: error.retry_after,
                is_outcome_unknown: false,
                source: Some(Box::new(error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_kind_and_the_cause() {
        let cause = Error::overloaded("disk is low", Duration::from_secs(1));
        let error = Err::<(), _>(cause)
            .context(|| "enqueue to `orders`")
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        assert_eq!(error.to_string(), "enqueue to `orders`");
        assert_eq!(error.chain(), "enqueue to `orders`: disk is low");
        let repeated =
            Error::unavailable("no answer: refused").with_source(std::io::Error::other("refused"));
        assert_eq!(repeated.chain(), "no answer: refused");
    }

    #[test]
    fn context_keeps_an_unknown_outcome_visible() {
        let cause = Error::outcome_unknown("the outcome is unknown");
        let error = Err::<(), _>(cause).context(|| "enqueue to `orders`");
        let error = error.unwrap_err();
        assert!(error.is_outcome_unknown());
        assert_eq!(
            error.to_string(),
            "enqueue to `orders`: the outcome is unknown"
        );
    }
}
