//! Limits before the routes of a listener, for each client.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Once, PoisonError};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use towpath_core::limiter::{Amount, Decision};
use towpath_core::{Error, Result};
use tracing::warn;

use super::limiter::{LimitRequest, Limiter};
use super::limits::{rate_headers, seconds};
use super::rule::Rule;
use crate::http::error::Problem;
use crate::http::{BatchCost, Peer, client_block, is_probe};
use crate::telemetry::log_failure;
use towpath::net::cidr;

/// The header that proxies say the client's address in.
const FORWARDED: &str = "x-forwarded-for";

/// Every route that is not named itself.
const ANY: &str = "*";

/// The limits of a listener; cheap to clone.
#[derive(Clone)]
pub struct RateLimitLayer {
    limiter: Limiter,
    rules: Arc<HashMap<String, Rule>>,
    proxies: Arc<[IpNet]>,
    /// Said once, as every request of the proxy would repeat it.
    unreadable: Arc<Once>,
}

impl RateLimitLayer {
    /// Limits in texts like `/enqueue=token_bucket:10:1/1s`, behind proxies of these addresses and nets.
    ///
    /// # Errors
    /// `Invalid` for an invalid limit, and for a proxy that is not an address or CIDR block.
    pub fn new(limiter: Limiter, limits: &[String], proxies: &[String]) -> Result<Self> {
        let rules = limits.iter().map(|text| route_limit(text));
        let proxies = proxies.iter().map(|text| {
            cidr::parse(text)
                .ok_or_else(|| Error::invalid(format!("invalid address or CIDR block `{text}`")))
        });
        Ok(Self {
            limiter,
            rules: Arc::new(rules.collect::<Result<_>>()?),
            proxies: proxies.collect::<Result<Vec<_>>>()?.into(),
            unreadable: Arc::new(Once::new()),
        })
    }

    /// The same for a listener beside the public one: only routes that are named have limits, because agents and
    /// workers depend on the others.
    #[must_use]
    pub fn named_only(mut self) -> Self {
        let named = self.rules.iter().filter(|(route, _)| *route != ANY);
        self.rules = Arc::new(
            named
                .map(|(route, rule)| (route.clone(), rule.clone()))
                .collect(),
        );
        self
    }

    /// The limit of a route and its name.
    fn rule(&self, route: &str) -> Option<(&str, &Rule)> {
        // Probes are never refused, except by a limit of their own.
        let any = || self.rules.get_key_value(ANY).filter(|_| !is_probe(route));
        let (name, rule) = self.rules.get_key_value(route).or_else(any)?;
        Some((name, rule))
    }

    /// The client of a request: the peer, or behind a trusted proxy the last address it names that is not one.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let is_trusted = |address: &IpAddr| self.proxies.iter().any(|net| net.contains(address));
        let mut client = peer.to_canonical();
        let named = headers
            .get_all(FORWARDED)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let named: Vec<&str> = named.flat_map(|value| value.split(',')).collect();
        for text in named.into_iter().rev() {
            if !is_trusted(&client) {
                break;
            }
            let Some(address) = forwarded(text.trim()) else {
                self.unreadable.call_once(|| {
                    warn!(
                        header = FORWARDED,
                        proxy = %client,
                        "forwarded address unreadable; its clients share the limit of their proxy"
                    );
                });
                break;
            };
            client = address.to_canonical();
        }
        client
    }
}

/// An address as proxies write it: alone, with a port, or in brackets.
fn forwarded(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse()
        .or_else(|_| with_port())
        .ok()
        .or_else(bracketed)
}

/// Whether a text is the limit of a route.
pub fn is_route_limit(text: &str) -> bool {
    route_limit(text).is_ok()
}

/// The route that a text limits, which may be that of a listener or not; absent for every route.
pub fn limited_route(text: &str) -> Option<&str> {
    let (route, _) = text.split_once('=')?;
    Some(route).filter(|route| *route != ANY)
}

fn route_limit(text: &str) -> Result<(String, Rule)> {
    let (route, rule) = text
        .split_once('=')
        .filter(|(route, _)| *route == ANY || route.starts_with('/'))
        .ok_or_else(|| {
            Error::invalid(format!(
                "invalid route `{text}`; expected e.g. `/enqueue=token_bucket:10:1/1s`"
            ))
        })?;
    Ok((route.to_owned(), Rule::parse(route, rule)?))
}

/// Routes behind these limits.
pub fn limited(routes: Router, limits: RateLimitLayer) -> Router {
    routes.layer(from_fn_with_state(limits, pass))
}

async fn pass(State(layer): State<RateLimitLayer>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let peer = request.extensions().get::<Peer>().copied();
    let (Some((name, rule)), Some(Peer(peer))) = (layer.rule(route.unwrap_or_default()), peer)
    else {
        return next.run(request).await;
    };
    let client = client_block(layer.client(peer.ip(), request.headers()));
    let limit = Limit {
        limiter: layer.limiter.clone(),
        // The first character is one that no key of the API may have.
        key: format!("\u{1}{name}\u{1}{client}"),
        rule: rule.clone(),
        last: Mutex::default(),
    };
    let limit = Arc::new(limit);
    let mut response = match limit.take(1).await {
        Err(refusal) => refusal.into_response(),
        Ok(()) => {
            let charged = Arc::clone(&limit);
            request.extensions_mut().insert(BatchCost::new(move |rest| {
                let charged = Arc::clone(&charged);
                Box::pin(async move { charged.take_rest(rest).await })
            }));
            next.run(request).await
        }
    };
    let last = limit.last.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(decision) = &*last {
        set_headers(response.headers_mut(), rule, decision);
    }
    drop(last);
    response
}

/// The limit of one request's route and client.
struct Limit {
    limiter: Limiter,
    key: String,
    rule: Rule,
    /// The latest decision, which the headers of the answer show.
    last: Mutex<Option<Decision>>,
}

impl Limit {
    /// Takes the messages of a batch beyond its first, which is taken already.
    ///
    /// # Errors
    /// The refusal.
    async fn take_rest(&self, rest: u64) -> std::result::Result<(), Problem> {
        let (count, capacity) = (rest + 1, self.rule.policy.capacity());
        if Amount::whole(count) > capacity {
            let most = capacity.as_micros() / 1_000_000;
            let text = format!(
                "a batch of {count} messages never fits into the rate limit of {most}; send smaller batches"
            );
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        self.take(rest).await
    }

    /// Takes this many messages.
    ///
    /// # Errors
    /// The refusal.
    async fn take(&self, messages: u64) -> std::result::Result<(), Problem> {
        let amount = Amount::whole(messages);
        let requests = [LimitRequest {
            key: &self.key,
            rule: &self.rule,
            amount,
        }];
        let decided = self.limiter.take_any(&requests).await.map_err(|error| {
            log_failure("rate limit decision failed", &error);
            let text = "Rate limiting temporarily unavailable";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1)
        })?;
        let Some(decision) = decided.into_iter().next() else {
            return Ok(());
        };
        let (allowed, after) = (decision.allowed, seconds(decision.retry_after).max(1));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(decision);
        if allowed {
            return Ok(());
        }
        let text = format!("Rate limit exceeded. Try again after {after} seconds.");
        Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, text)
            .retry_after(after)
            .text())
    }
}

/// State of the limit in headers, unless the answer is about another limit already.
fn set_headers(headers: &mut HeaderMap, rule: &Rule, decision: &Decision) {
    let whole = |amount: Amount| HeaderValue::from(amount.as_micros() / 1_000_000);
    let (limit, remaining) = (whole(rule.policy.capacity()), whole(decision.remaining));
    let name = HeaderName::from_static;
    headers.insert(name("x-ratelimit-limit"), limit);
    headers.insert(name("x-ratelimit-remaining"), remaining);
    if !headers.contains_key("ratelimit-limit") {
        rate_headers(headers, rule, decision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_addresses_may_have_ports() {
        for text in ["203.0.113.7", "203.0.113.7:5100"] {
            assert_eq!(forwarded(text), "203.0.113.7".parse().ok(), "{text}");
        }
        for text in ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443"] {
            assert_eq!(forwarded(text), "2001:db8::1".parse().ok(), "{text}");
        }
        for text in [
            "",
            "unknown",
            "_hidden",
            "203.0.113.7:",
            "203.0.113.7:99999",
        ] {
            assert_eq!(forwarded(text), None, "{text}");
        }
    }

    #[test]
    fn a_limit_names_a_route() {
        for right in [
            "*=token_bucket:10:0.1/1s",
            "/enqueue=sliding_window:5/1m:fail_open",
        ] {
            assert!(is_route_limit(right), "{right}");
        }
        for wrong in [
            "",
            "enqueue=token_bucket:1:1/1s",
            "/enqueue",
            "/enqueue=token_bucket:1",
        ] {
            assert!(!is_route_limit(wrong), "{wrong}");
        }
    }
}
