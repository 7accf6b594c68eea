//! The pages of a listener about itself.

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::header;
use serde_json::Value;

use crate::documents::landing;

/// The page at `/`, and the OpenAPI document that it leads to.
#[derive(Clone)]
pub(super) struct Page {
    landing: Bytes,
    document: Bytes,
}

impl Page {
    pub(super) fn of(document: &Value) -> Self {
        Self {
            landing: landing(document).into(),
            document: document.to_string().into(),
        }
    }

    pub(super) fn routes(&self) -> Router {
        let answer = |kind: &'static str, body: Bytes| {
            get(move || async move { ([(header::CONTENT_TYPE, kind)], body) })
        };
        Router::new()
            .route(
                "/",
                answer("text/plain; charset=utf-8", self.landing.clone()),
            )
            .route(
                "/openapi.json",
                answer("application/json", self.document.clone()),
            )
    }
}
