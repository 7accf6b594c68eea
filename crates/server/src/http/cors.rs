//! Which pages may use a listener from a browser. Source: Fetch standard, "CORS protocol".

use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};
use towpath_core::{Error, Result};

/// Headers of answers that a page may read beside the plain ones.
const EXPOSED: [&str; 8] = [
    "etag",
    "location",
    "retry-after",
    "x-request-id",
    "idempotency-replayed",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
];

/// The pages.
#[derive(Debug, Clone)]
pub struct Cors {
    origins: AllowOrigin,
    max_age: Duration,
}

impl Cors {
    /// Pages of these origins, `*` for any page; none without an origin.
    ///
    /// # Errors
    /// `Invalid` when an origin cannot stand in a header.
    pub fn new(origins: &[String], max_age: Duration) -> Result<Option<Self>> {
        if origins.is_empty() {
            return Ok(None);
        }
        let origins = if origins.iter().any(|origin| origin == "*") {
            AllowOrigin::any()
        } else {
            let values = origins.iter().map(|origin| {
                HeaderValue::from_str(origin).map_err(|_| {
                    Error::invalid(format!(
                        "`{origin}` is not an origin; expected e.g. `https://shop.example`"
                    ))
                })
            });
            AllowOrigin::list(values.collect::<Result<Vec<_>>>()?)
        };
        Ok(Some(Self { origins, max_age }))
    }

    /// Answers preflight requests itself, and marks every other answer.
    pub(super) fn layer(self) -> CorsLayer {
        CorsLayer::new()
            .allow_origin(self.origins)
            // Credentials are headers that a page sets itself, and never cookies: requested headers are allowed.
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(ExposeHeaders::list(EXPOSED.map(HeaderName::from_static)))
            .vary([header::ORIGIN])
            .max_age(self.max_age)
    }
}
