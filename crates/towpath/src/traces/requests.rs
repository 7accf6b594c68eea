//! Spans of HTTP: of requests that are served, and of those that are sent on behalf of one or of a delivery.
//!
//! Source: OpenTelemetry, "Semantic Conventions for HTTP Spans" 1.27.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};

use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::Span;
use reqwest::Url;
use towpath_core::Error;
use towpath_core::message::header::{TRACEPARENT, TRACESTATE};

use super::messages::below;
use super::position::{extracted, here};
use super::{IS_SILENT, TRACER};
use crate::shown_url::shown;

/// The head of a request that is served.
#[expect(missing_docs, reason = "the fields have the names of HTTP")]
pub struct Served<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub version: Version,
    pub headers: &'a HeaderMap,
    /// The template of the route; absent when there is none for the path.
    pub route: Option<&'a str>,
    pub client: Option<IpAddr>,
    pub is_secure: bool,
}

/// Begins the span of a request, and returns its trace position. Without a collector that is the client's.
pub fn server(request: &Served<'_>) -> (Option<Span>, Option<SpanContext>) {
    let parent = of_request(request.headers);
    let Some(tracer) = TRACER.get() else {
        return (None, parent);
    };
    let method = known(request.method);
    let name = match (method, request.route) {
        (Some(method), Some(route)) => format!("{method} {route}"),
        (Some(method), None) => method.to_owned(),
        (None, Some(route)) => format!("HTTP {route}"),
        (None, None) => "HTTP".to_owned(),
    };
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.unwrap_or("_OTHER")),
        KeyValue::new("url.path", request.uri.path().to_owned()),
        KeyValue::new(
            "url.scheme",
            if request.is_secure { "https" } else { "http" },
        ),
        KeyValue::new("network.protocol.version", version(request.version)),
    ];
    if method.is_none() {
        let original = request.method.as_str().to_owned();
        attributes.push(KeyValue::new("http.request.method_original", original));
    }
    if let Some(route) = request.route {
        attributes.push(KeyValue::new("http.route", route.to_owned()));
    }
    if let Some(client) = request.client {
        attributes.push(KeyValue::new("client.address", client.to_string()));
    }
    let texts = [
        ("server.address", header::HOST),
        ("user_agent.original", header::USER_AGENT),
    ];
    for (attribute, name) in texts {
        if let Some(value) = request
            .headers
            .get(name)
            .and_then(|text| text.to_str().ok())
        {
            attributes.push(KeyValue::new(attribute, value.to_owned()));
        }
    }
    let span = tracer
        .span_builder(name)
        .with_kind(SpanKind::Server)
        .with_attributes(attributes)
        .start_with_context(tracer, &below(parent));
    let position = span.span_context().clone();
    (Some(span), Some(position))
}

/// Ends the span of a request with its answer. Only server faults are errors.
pub fn respond(span: Option<Span>, status: StatusCode) {
    if let Some(span) = span {
        end(span, status, status.is_server_error());
    }
}

/// Begins the span of a request that is about to be sent, which carries it on. Requests of no trace have none.
pub fn client(method: &Method, url: &Url, headers: &mut HeaderMap) -> Option<Span> {
    let here = here()?;
    let Some(tracer) = TRACER.get() else {
        send(&here, headers);
        return None;
    };
    let method = known(method).unwrap_or("_OTHER");
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.full", shown(url)),
    ];
    if let Some(host) = url.host_str() {
        attributes.push(KeyValue::new("server.address", host.to_owned()));
    }
    if let Some(port) = url.port_or_known_default() {
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
    let span = tracer
        .span_builder(method)
        .with_kind(SpanKind::Client)
        .with_attributes(attributes)
        .start_with_context(tracer, &below(Some(here)));
    send(span.span_context(), headers);
    Some(span)
}

/// Ends the span of a request that was sent.
pub fn answered(span: Option<Span>, outcome: Result<StatusCode, &Error>) {
    let Some(mut span) = span else {
        return;
    };
    match outcome {
        Ok(status) => {
            let is_error = status.is_client_error() || status.is_server_error();
            end(span, status, is_error);
        }
        Err(error) => {
            span.set_attribute(KeyValue::new("error.type", error.kind().as_str()));
            span.set_status(Status::error(error.chain()));
        }
    }
}

fn end(mut span: Span, status: StatusCode, is_error: bool) {
    let code = i64::from(status.as_u16());
    span.set_attribute(KeyValue::new("http.response.status_code", code));
    if is_error {
        span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
        span.set_status(Status::error(""));
    }
}

/// A method that spans may be named by.
fn known(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    KNOWN.into_iter().find(|known| method == known)
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// The position that a request says.
fn of_request(headers: &HeaderMap) -> Option<SpanContext> {
    // Two of them say nothing.
    let mut all = headers.get_all(TRACEPARENT).iter();
    let (Some(_), None) = (all.next(), all.next()) else {
        return None;
    };
    extracted(&OfRequest(headers))
}

/// Has a request carry a position.
fn send(position: &SpanContext, headers: &mut HeaderMap) {
    if IS_SILENT.get().is_none() {
        let context = Context::new().with_remote_span_context(position.clone());
        TraceContextPropagator::new().inject_context(&context, &mut ToRequest(headers));
    }
}

struct OfRequest<'a>(&'a HeaderMap);

impl Extractor for OfRequest<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct ToRequest<'a>(&'a mut HeaderMap);

impl Injector for ToRequest<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = match key {
            TRACEPARENT => HeaderName::from_static(TRACEPARENT),
            TRACESTATE if !value.is_empty() => HeaderName::from_static(TRACESTATE),
            _ => return,
        };
        if let Ok(value) = HeaderValue::try_from(value) {
            self.0.insert(name, value);
        }
    }
}
