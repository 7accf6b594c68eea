//! Middleware of every request: id, checks of head and body, a concurrency limit, metrics, and panic handling.
//!
//! ```text
//! head -> gate -> limits, method -> body (bounded in size, time and memory) -> a place -> handler -> answer
//! ```
//!
//! Only complete requests count as concurrent: slow clients cost memory, and never a permit.
//! The body is read when the handler asks for it, so whatever the head decides is answered before.

use std::borrow::Cow;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, StatusCode, Uri, Version, header};
use http_body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;
use towpath_core::wait_limit;
use tracing::{Instrument, debug, error, info_span};
use uuid::Uuid;

use super::body::{self, BodyReader, Deferred, Failure, MemoryPermit};
use super::error::{Form, Problem};
use super::extract::no_query;
use super::page::{Html, Page};
use super::{Cors, Peer};
use crate::auth::{Actor, Change, Guard, Table};
use crate::telemetry::Metrics;
use towpath::traces::{self, Served};

const REQUEST_ID: &str = "x-request-id";

/// The largest body of a route that says nothing else, in bytes.
const BODY_BYTES: usize = 1 << 20;

/// Looks at the head of a request before anything of its body is read.
type AdmissionGate = dyn Fn(&Parts) -> Result<(), Problem> + Send + Sync;

/// The largest body of a route.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimit {
    /// The route's template.
    pub route: &'static str,
    /// In bytes.
    pub bytes: usize,
    /// The name of the body in the refusal: `message`.
    pub what: &'static str,
}

/// A method and the template of a route.
pub type Asking = (Method, Cow<'static, str>);

/// Whether a route is a probe. Load balancers add parameters of their own, and a refused one takes the process out.
pub fn is_probe(route: &str) -> bool {
    let mut probes = ["/health", "/healthz", "/livez", "/readyz"].into_iter();
    let below = |probe: &str| {
        route
            .strip_prefix(probe)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    probes.any(|probe| route == probe || below(probe))
}

/// The layer around the routes of a listener.
#[derive(Clone)]
pub struct RequestLayer {
    metrics: Metrics,
    in_flight: Arc<Semaphore>,
    reader: BodyReader,
    form: Form,
    forms: &'static [(&'static str, Form)],
    bodies: Arc<[BodyLimit]>,
    queries: Arc<[Asking]>,
    gate: Arc<AdmissionGate>,
    guard: Option<(Guard, Table)>,
    patience: Option<Duration>,
    is_secure: bool,
    page: Option<Page>,
    cors: Option<Cors>,
}

impl RequestLayer {
    /// At most `max_in_flight` concurrent requests; further ones get 503 at once. Bodies hold up to 1 MiB each.
    pub fn new(metrics: Metrics, max_in_flight: usize, reader: BodyReader) -> Self {
        Self {
            metrics,
            in_flight: Arc::new(Semaphore::new(max_in_flight)),
            reader,
            form: Form::Text,
            forms: &[],
            bodies: Arc::new([]),
            queries: Arc::new([]),
            gate: Arc::new(|_| Ok(())),
            guard: None,
            patience: None,
            is_secure: false,
            page: None,
            cors: None,
        }
    }

    /// The listener speaks TLS.
    #[must_use]
    pub fn secure(mut self, is_secure: bool) -> Self {
        self.is_secure = is_secure;
        self
    }

    /// Answers `/` with a page about these routes, and `/openapi.json` with their document.
    #[must_use]
    pub fn document(mut self, document: &serde_json::Value) -> Self {
        self.page = Some(Page::of(document));
        self
    }

    /// Browsers get this page at `/`, after [`RequestLayer::document`].
    #[must_use]
    pub fn html(mut self, html: Html) -> Self {
        self.page = self.page.map(|page| page.with_html(html));
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

    /// Error format for clients without an `Accept` header.
    #[must_use]
    pub fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// Paths that begin so have a form of their own.
    #[must_use]
    pub fn forms(mut self, forms: &'static [(&'static str, Form)]) -> Self {
        self.forms = forms;
        self
    }

    /// The form of a path.
    fn form_of(&self, path: &str) -> Form {
        let mut forms = self.forms.iter();
        let own = forms.find(|(start, _)| path.starts_with(start));
        own.map_or(self.form, |(_, form)| *form)
    }

    /// These requests have parameters, which their handlers read; all others with a query string are refused.
    #[must_use]
    pub fn queries(mut self, queries: impl IntoIterator<Item = Asking>) -> Self {
        self.queries = queries.into_iter().collect();
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

    /// Each route requires its scope in the table. Without it every route is open.
    #[must_use]
    pub fn guard(mut self, guard: Guard, table: Table) -> Self {
        self.guard = Some((guard, table));
        self
    }

    /// Refuses a request by its head, before its body is read. Returns its sender.
    fn admit(&self, route: Option<&str>, head: &Parts) -> Result<Actor, Problem> {
        let Some(route) = route else {
            return Err(Problem::new(StatusCode::NOT_FOUND, "not found"));
        };
        one_host(head)?;
        chunked(head)?;
        expected(head)?;
        plain(head)?;
        (self.gate)(head)?;
        let actor = match &self.guard {
            Some((guard, table)) => guard.check(table, route, head)?,
            None => Actor::Anonymous,
        };
        // By the route alone: a wrong method is 405, whatever its query string.
        let asks = self.queries.iter().any(|(_, known)| known == route);
        match head.uri.query() {
            Some(query) if !asks && !is_probe(route) => no_query(query).map(|()| actor),
            _ => Ok(actor),
        }
    }

    async fn serve(
        &self,
        route: Option<&str>,
        request_id: &str,
        request: Request,
        next: Next,
    ) -> Response {
        let (mut head, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let actor = match self.admit(route, &head) {
            Ok(actor) => actor,
            Err(problem) => return self.refuse(problem, route, has_body),
        };
        let change = self.guard.as_ref().and_then(|(guard, table)| {
            let route = route.unwrap_or_default();
            Change::of(guard, table, route, &head, (&actor, request_id))
        });
        head.extensions.insert(actor);
        let limit = self.limit(route.unwrap_or_default());
        let reading = Reading::new(self, limit);
        head.extensions.insert(InFlight(reading.clone()));
        let body = match reading.begin() {
            true if !has_body => Body::empty(),
            true => reading.deferred(body),
            // The body is read, so that the connection can be reused.
            false => match reading.read(body).await {
                Some(bytes) => Body::from(bytes),
                None => return reading.refusal().unwrap_or_else(busy),
            },
        };
        let handled = next.run(Request::from_parts(head, body));
        let response = match self.patience {
            Some(limit) => wait_limit::within(limit, handled).await,
            None => handled.await,
        };
        let response = reading.end(response, has_body);
        if let Some(change) = change {
            change.record(response.status());
        }
        response
    }

    /// An answer before the body was read, with the header that goes with its status.
    fn refuse(&self, problem: Problem, route: Option<&str>, has_body: bool) -> Response {
        let header = match problem.status() {
            // RFC 9110, section 12.5.3: in an answer it lists the codings of requests.
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Some((
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            )),
            StatusCode::UNAUTHORIZED => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
            }
            StatusCode::METHOD_NOT_ALLOWED => self.guard.as_ref().and_then(|(_, table)| {
                let methods = table.methods(route.unwrap_or_default());
                Some((header::ALLOW, HeaderValue::from_str(&methods).ok()?))
            }),
            _ => None,
        };
        let mut response = answer_early(problem, has_body);
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
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

/// The permit of a request among the concurrent requests; an extension of the request.
#[derive(Clone)]
pub struct InFlight(Reading);

impl InFlight {
    /// Returns the permit while the request waits for news. It is not taken again: the rest of the request is short.
    pub fn park(&self) {
        self.0.lock().permit = None;
    }
}

/// The body of a request while it is read, and its place among the concurrent requests.
#[derive(Clone)]
struct Reading(Arc<Inner>);

struct Inner {
    progress: Mutex<Progress>,
    in_flight: Arc<Semaphore>,
    reader: BodyReader,
    limit: BodyLimit,
}

#[derive(Default)]
struct Progress {
    permit: Option<OwnedSemaphorePermit>,
    memory: Option<MemoryPermit>,
    is_read: bool,
    refusal: Option<Response>,
}

impl Reading {
    fn new(layer: &RequestLayer, limit: BodyLimit) -> Self {
        Self(Arc::new(Inner {
            progress: Mutex::default(),
            in_flight: Arc::clone(&layer.in_flight),
            reader: layer.reader.clone(),
            limit,
        }))
    }

    /// Takes a place; false when there is none.
    fn begin(&self) -> bool {
        let permit = Arc::clone(&self.0.in_flight).try_acquire_owned();
        let mut state = self.lock();
        state.permit = permit.ok();
        state.permit.is_some()
    }

    /// The body, read when it is asked for. Its place is free meanwhile: slow clients cost memory, and never a place.
    fn deferred(&self, body: Body) -> Body {
        let reading = self.clone();
        Body::new(Deferred::new(async move { reading.read(body).await }))
    }

    async fn read(&self, body: Body) -> Option<Bytes> {
        self.lock().permit = None;
        let limit = self.0.limit;
        match self.0.reader.read(body, limit.bytes).await {
            Ok((bytes, memory)) => {
                let has_place = self.begin();
                let mut state = self.lock();
                (state.is_read, state.memory) = (true, memory);
                match has_place {
                    true => Some(bytes),
                    false => {
                        state.refusal = Some(busy());
                        None
                    }
                }
            }
            Err(failure) => {
                self.lock().refusal = Some(answer_early(unread(failure, limit.what), true));
                None
            }
        }
    }

    fn refusal(&self) -> Option<Response> {
        self.lock().refusal.take()
    }

    /// The answer, or why the body was refused. A connection ends on a body that was not read.
    fn end(&self, mut response: Response, has_body: bool) -> Response {
        let mut state = self.lock();
        if let Some(refusal) = state.refusal.take() {
            return refusal;
        }
        if has_body && !state.is_read {
            close(&mut response);
        }
        match state.memory.take() {
            Some(memory) => response.map(|body| body::charged(body, memory)),
            None => response,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        let progress = &self.0.progress;
        progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn busy() -> Response {
    let reason = "too many concurrent requests; retry later";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason)
        .retry_after(1)
        .into_response()
}

/// Wraps the routes in the layer.
///
/// A path with a trailing slash that is not a route is the route without it.
pub fn wrap(router: Router, layer: RequestLayer) -> Router {
    let cors = layer.cors.clone();
    let router = match &layer.page {
        Some(page) => router.merge(page.routes()),
        None => router,
    };
    let routed = router
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
        })
        // The layer has bounded the body already.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::new(layer), pass));
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

async fn pass(State(layer): State<Arc<RequestLayer>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let form = layer.form_of(uri.path()).accepted(request.headers());
    // The template, never the path itself: labels come from the program only.
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let label = route.unwrap_or("unmatched");
    let name = id.to_str().unwrap_or_default();
    let span = info_span!("request", id = name, %method, route = label);
    let (traced, position) = traces::server(&Served {
        method: &method,
        uri: &uri,
        version: request.version(),
        headers: request.headers(),
        route,
        client: client(&request),
        is_secure: layer.is_secure,
    });
    let handled = AssertUnwindSafe(layer.serve(route, name, request, next))
        .catch_unwind()
        .instrument(span.clone());
    let handled = traces::within(position, handled).await;
    let mut response = handled.unwrap_or_else(|_| {
        span.in_scope(|| error!("request handler panicked"));
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response()
    });
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        problem.write(form, uri.path(), name, &mut response);
    }
    span.in_scope(
        || debug!(status = response.status().as_u16(), elapsed = ?began.elapsed(), "answered"),
    );
    traces::respond(traced, response.status());
    layer.metrics.http_request(
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

/// An answer before the body was read: the rest of the body cannot be distinguished from a next request, so the connection ends.
fn answer_early(problem: Problem, has_body: bool) -> Response {
    let mut response = problem.into_response();
    if has_body {
        close(&mut response);
    }
    response
}

fn close(response: &mut Response) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

fn unread(failure: Failure, part: &str) -> Problem {
    match failure {
        Failure::TooLarge(limit) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{part} is over the limit of {limit} bytes"),
        ),
        Failure::TooSlow => Problem::new(StatusCode::REQUEST_TIMEOUT, "body took too long"),
        Failure::NoRoom => {
            let full = "request-body memory limit reached; retry later";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, full).retry_after(1)
        }
        Failure::Broken => Problem::new(StatusCode::BAD_REQUEST, "failed to read body"),
    }
}

/// RFC 9112, section 3.2: HTTP/1.1 names the host exactly once, and by a valid name.
fn one_host(head: &Parts) -> Result<(), Problem> {
    let hosts = head.headers.get_all(header::HOST);
    let count = hosts.iter().take(2).count();
    let is_one = count == 1 || count == 0 && head.version != Version::HTTP_11;
    match is_one && hosts.iter().all(is_host) {
        true => Ok(()),
        false => Err(Problem::invalid(
            "a request names its `Host` exactly once, as a name or an address with or without a port",
        )),
    }
}

/// RFC 3986, section 3.2: a name or an address, and perhaps a port. Without either the target has no host.
fn is_host(value: &HeaderValue) -> bool {
    let text = value.to_str().unwrap_or("?@");
    let Ok(host) = text.parse::<Authority>() else {
        return text.is_empty();
    };
    let port = text[host.host().len()..]
        .strip_prefix(':')
        .unwrap_or_default();
    !text.contains('@') && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// RFC 9112, section 6.1: a body that cannot be decoded is not passed on as if it were decoded.
fn chunked(head: &Parts) -> Result<(), Problem> {
    let codings = head.headers.get_all(header::TRANSFER_ENCODING);
    let codings = codings.iter().map(|value| value.as_bytes().trim_ascii());
    let codings = codings.collect::<Vec<_>>().join(&b", "[..]);
    if codings.is_empty() || codings.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let reason = format!(
        "`Transfer-Encoding: {}` is not supported; send `chunked` alone",
        String::from_utf8_lossy(&codings)
    );
    Err(Problem::new(StatusCode::NOT_IMPLEMENTED, reason))
}

/// RFC 9110, section 10.1.1: an expectation that is not understood is refused.
fn expected(head: &Parts) -> Result<(), Problem> {
    let lines = head.headers.get_all(header::EXPECT).iter();
    let members = lines.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut members = members.map(|member| member.trim_ascii());
    let is_known =
        |member: &[u8]| member.is_empty() || member.eq_ignore_ascii_case(b"100-continue");
    match members.find(|member| !is_known(member)) {
        None => Ok(()),
        Some(member) => {
            let reason = format!(
                "`Expect: {}` is not supported; send `100-continue` or no `Expect`",
                String::from_utf8_lossy(member)
            );
            Err(Problem::new(StatusCode::EXPECTATION_FAILED, reason))
        }
    }
}

/// RFC 9110, section 8.4: an encoded body differs from its contents. None is decoded here.
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

/// Where the request comes from.
fn client(request: &Request) -> Option<IpAddr> {
    let peer = request.extensions().get::<Peer>()?;
    Some(peer.0.ip().to_canonical())
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
