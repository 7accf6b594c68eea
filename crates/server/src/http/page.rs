//! The pages of a listener about itself.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use crate::documents::landing;

/// A page for browsers, by the headers of the request.
pub(crate) type Html = fn(&HeaderMap) -> Response;

/// The page at `/`, and the OpenAPI document that it leads to.
#[derive(Clone)]
pub(super) struct Page {
    landing: Bytes,
    html: Option<Html>,
    document: Bytes,
}

impl Page {
    pub(super) fn of(document: &Value) -> Self {
        Self {
            landing: landing(document).into(),
            html: None,
            document: document.to_string().into(),
        }
    }

    /// Browsers get this page at `/`.
    pub(super) const fn with_html(mut self, html: Html) -> Self {
        self.html = Some(html);
        self
    }

    pub(super) fn routes(&self) -> Router {
        let answer = |kind: &'static str, body: Bytes| {
            get(move || async move { ([(header::CONTENT_TYPE, kind)], body) })
        };
        let (landing, html) = (self.landing.clone(), self.html);
        let root = get(move |headers: HeaderMap| async move {
            match html.filter(|_| is_browser(&headers)) {
                Some(html) => html(&headers),
                None => {
                    let kind = "text/plain; charset=utf-8";
                    ([(header::CONTENT_TYPE, kind)], landing).into_response()
                }
            }
        });
        Router::new().route("/", root).route(
            "/openapi.json",
            answer("application/json", self.document.clone()),
        )
    }
}

/// Whether the client asks for HTML by name, as browsers do.
fn is_browser(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}
