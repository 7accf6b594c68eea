//! Why a request of an operator was not served.

use axum::response::{IntoResponse, Response};
use towpath_core::Error;

use crate::http::error::Problem;

/// A problem whose status follows from the kind of the error: names and keys of these requests go to a backend as they
/// came, so a rejection may be the caller's mistake.
pub(super) struct Failure(Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(Problem::by_kind(error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}
