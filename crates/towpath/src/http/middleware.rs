//! What every request passes: an id, a look at its head, its body, a bound on how many are in hand, a measure, and a net for panics.
//!
//! ```text
//! head -> gate -> body (bounded in size, time and memory) -> in hand -> handler -> answer
//! ```
//!
//! Only a request that is complete counts as in hand: slow clients cost memory, and never a place.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::request::Parts;
use http::{HeaderValue, StatusCode, Uri, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use towpath_core::patience;
use tracing::{Instrument, debug, error, info_span};
use uuid::Uuid;

use super::Cors;
use super::body::{self, Failure, Intake};
use super::error::{Form, Problem};
use super::page::Page;
use crate::telemetry::Metrics;

const REQUEST_ID: &str = "x-request-id";

/// The largest body of a route that says nothing else, in bytes.
const BODY_BYTES: usize = 1 << 20;

/// Looks at the head of a request before anything of its body is read.
type Gate = dyn Fn(&Parts) -> Result<(), Problem> + Send + Sync;

/// The largest body of a route.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimit {
    /// The route's template.
    pub route: &'static str,
    /// In bytes.
    pub bytes: usize,
    /// What the body is called in the refusal: `message`.
    pub what: &'static str,
}

/// What a listener puts around its routes.
#[derive(Clone)]
pub struct Edge {
    metrics: Metrics,
    in_hand: Arc<Semaphore>,
    intake: Intake,
    form: Form,
    bodies: Arc<[BodyLimit]>,
    gate: Arc<Gate>,
    patience: Option<Duration>,
    page: Option<Page>,
    cors: Option<Cors>,
}

impl Edge {
    /// At most `max_in_flight` requests in hand; more are answered 503 at once. Bodies hold up to 1 MiB each.
    pub fn new(metrics: Metrics, max_in_flight: usize, intake: Intake) -> Self {
        Self {
            metrics,
            in_hand: Arc::new(Semaphore::new(max_in_flight)),
            intake,
            form: Form::Text,
            bodies: Arc::new([]),
            gate: Arc::new(|_| Ok(())),
            patience: None,
            page: None,
            cors: None,
        }
    }

    /// Answers `/` with a page about these routes, and `/openapi.json` with their document.
    #[must_use]
    pub fn document(mut self, document: &serde_json::Value) -> Self {
        self.page = Some(Page::of(document));
        self
    }

    /// Pages of these origins may use the routes from a browser.
    #[must_use]
    pub fn cors(mut self, cors: Option<Cors>) -> Self {
        self.cors = cors;
        self
    }

    /// Each wait of a handler for a store lasts at most this long.
    #[must_use]
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = Some(limit);
        self
    }

    /// Problems are worded like this, for clients that do not say what they accept.
    #[must_use]
    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// These routes have limits of their own.
    #[must_use]
    pub fn bodies(mut self, limits: &[BodyLimit]) -> Self {
        self.bodies = limits.into();
        self
    }

    /// Refuses requests by their head, before anything of the body is read.
    #[must_use]
    pub fn gate(
        mut self,
        gate: impl Fn(&Parts) -> Result<(), Problem> + Send + Sync + 'static,
    ) -> Self {
        self.gate = Arc::new(gate);
        self
    }

    async fn serve(&self, route: Option<&str>, request: Request, next: Next) -> Response {
        let (head, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let refused = match route {
            None => Err(Problem::new(StatusCode::NOT_FOUND, "not found")),
            Some(_) => one_host(&head)
                .and_then(|()| plain(&head))
                .and_then(|()| (self.gate)(&head)),
        };
        if let Err(problem) = refused {
            let is_encoded = problem.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE;
            let mut response = answer_early(problem, has_body);
            if is_encoded {
                // RFC 9110, section 12.5.3: in an answer it says what a request may have.
                let identity = HeaderValue::from_static("identity");
                response
                    .headers_mut()
                    .insert(header::ACCEPT_ENCODING, identity);
            }
            return response;
        }
        let limit = self.limit(route.unwrap_or_default());
        let (bytes, charge) = match self.intake.read(body, limit.bytes).await {
            Ok(read) => read,
            Err(failure) => return answer_early(unread(failure, limit.what), true),
        };
        let Ok(_permit) = self.in_hand.try_acquire() else {
            let busy = "too many requests in hand, try again";
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, busy)
                .retry_after(1)
                .into_response();
        };
        let handled = next.run(Request::from_parts(head, Body::from(bytes)));
        let response = match self.patience {
            Some(limit) => patience::within(limit, handled).await,
            None => handled.await,
        };
        match charge {
            Some(charge) => response.map(|body| body::charged(body, charge)),
            None => response,
        }
    }

    fn limit(&self, route: &str) -> BodyLimit {
        let known = self.bodies.iter().find(|limit| limit.route == route);
        known.copied().unwrap_or(BodyLimit {
            route: "",
            bytes: BODY_BYTES,
            what: "body",
        })
    }
}

/// Puts the edge around the routes.
///
/// A path with a slash at its end that is no route is the route without it.
pub fn wrap(router: Router, edge: Edge) -> Router {
    let cors = edge.cors.clone();
    let router = match &edge.page {
        Some(page) => router.merge(page.routes()),
        None => router,
    };
    let routed = router
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        // The edge has bounded the body already.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(edge, pass));
    let inner = routed.clone();
    let routed = routed.fallback(move |mut request: Request| {
        let inner = inner.clone();
        async move {
            if let Some(uri) = without_slash(request.uri()) {
                *request.uri_mut() = uri;
            }
            inner.oneshot(request).await
        }
    });
    match cors {
        // Outermost: a page reads refusals too.
        Some(cors) => routed.layer(cors.layer()),
        None => routed,
    }
}

/// The same without the one slash at the end of the path; `None` when there is none, and for the root.
fn without_slash(uri: &Uri) -> Option<Uri> {
    let path = uri
        .path()
        .strip_suffix('/')
        .filter(|path| !path.is_empty() && !path.ends_with('/'))?;
    let mut parts = uri.clone().into_parts();
    let whole = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    parts.path_and_query = Some(whole.parse().ok()?);
    Uri::from_parts(parts).ok()
}

async fn pass(State(edge): State<Edge>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let form = edge.form.accepted(request.headers());
    // The template, never the path itself: labels come from the program only.
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let label = route.unwrap_or("unmatched");
    let name = id.to_str().unwrap_or_default();
    let span = info_span!("request", id = name, %method, route = label);
    let handled = AssertUnwindSafe(edge.serve(route, request, next))
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let mut response = handled.unwrap_or_else(|_| {
        span.in_scope(|| error!("a handler panicked"));
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response()
    });
    if let Some(problem) = problem(form, &mut response).await {
        problem.write(form, uri.path(), name, &mut response);
    }
    span.in_scope(
        || debug!(status = response.status().as_u16(), elapsed = ?began.elapsed(), "answered"),
    );
    edge.metrics.http_request(
        label,
        method.as_str(),
        response.status().as_u16(),
        began.elapsed(),
    );
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if status.is_client_error() || status.is_server_error() {
        // A refusal quotes the request, and must never be taken for a page.
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    }
    response
}

/// The problem in a response, also that of an extractor of axum, which is a text.
async fn problem(form: Form, response: &mut Response) -> Option<Problem> {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        return Some(problem);
    }
    if form == Form::Text || !response.status().is_client_error() {
        return None;
    }
    let text = std::mem::take(response.body_mut()).collect().await.ok()?;
    let text = String::from_utf8_lossy(&text.to_bytes()).trim().to_owned();
    Some(Problem::new(response.status(), text))
}

/// An answer before the body was read: what is left of the body can not be told from a next request, so the connection ends.
fn answer_early(problem: Problem, has_body: bool) -> Response {
    let mut response = problem.into_response();
    if has_body {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

fn unread(failure: Failure, what: &str) -> Problem {
    match failure {
        Failure::TooLarge(limit) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{what} is over the limit of {limit} bytes"),
        ),
        Failure::TooSlow => Problem::new(StatusCode::REQUEST_TIMEOUT, "body took too long"),
        Failure::NoRoom => {
            let full = "too many bytes of bodies in hand, try again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, full).retry_after(1)
        }
        Failure::Broken => Problem::new(StatusCode::BAD_REQUEST, "failed to read body"),
    }
}

/// RFC 9112, section 3.2: HTTP/1.1 names the host exactly once.
fn one_host(head: &Parts) -> Result<(), Problem> {
    let count = head.headers.get_all(header::HOST).iter().take(2).count();
    if count == 1 || count == 0 && head.version < Version::HTTP_11 {
        return Ok(());
    }
    let reason = "a request names its `Host` exactly once";
    Err(Problem::new(StatusCode::BAD_REQUEST, reason))
}

/// RFC 9110, section 8.4: an encoded body is not what it decodes to. None is decoded here.
fn plain(head: &Parts) -> Result<(), Problem> {
    let encodings = head.headers.get_all(header::CONTENT_ENCODING);
    let is_plain = |value: &HeaderValue| {
        let value = value.as_bytes().trim_ascii();
        value.is_empty() || value.eq_ignore_ascii_case(b"identity")
    };
    match encodings.iter().find(|value| !is_plain(value)) {
        None => Ok(()),
        Some(value) => {
            let reason = format!(
                "`Content-Encoding: {}` is not supported; send the body without an encoding",
                String::from_utf8_lossy(value.as_bytes())
            );
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason))
        }
    }
}

/// The client's id when it is usable, a fresh one otherwise.
fn request_id(request: &Request) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    request
        .headers()
        .get(REQUEST_ID)
        .filter(usable)
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&Uuid::now_v7().to_string())
                .unwrap_or(HeaderValue::from_static("unknown"))
        })
}
