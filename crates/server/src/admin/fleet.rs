//! `/v1/fleet` and `/v1/tasks`: the routes of controller and worker for operators, with the admin token in
//! place of a key of the fleet. Data comes without the envelope of those listeners, refusals are problems.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, header};
use serde_json::Value;
use tower::ServiceExt;

use super::Admin;
use super::failure::Failure;
use crate::documents::fleet_for_operators;
use crate::http::Peer;
use crate::http::error::Problem;
use crate::token::Token;

/// The most that an answer of controller or worker has.
const MAX_ANSWER: usize = 64 << 20;

/// The routes of a role, once it serves them.
#[derive(Clone, Default)]
pub struct FleetListener(Arc<OnceLock<(Router, Token)>>);

impl FleetListener {
    /// Opens it: these routes want this key.
    pub fn open(&self, routes: Router, key: Token) {
        // A role starts once in a process.
        self.0.set((routes, key)).ok();
    }
}

/// Routes of the fleet's roles, for the admin interface.
#[derive(Clone, Default)]
pub struct FleetListeners {
    /// Of `fleet.controller`.
    pub controller: FleetListener,
    /// Of `fleet.worker`.
    pub worker: FleetListener,
}

/// Every route that the document has.
pub(super) fn routes() -> Router<Admin> {
    let mut router = Router::new();
    for operation in fleet_for_operators() {
        let method = match operation.method {
            "post" => MethodFilter::POST,
            "delete" => MethodFilter::DELETE,
            _ => MethodFilter::GET,
        };
        router = router.route(operation.path, on(method, pass_on));
    }
    router
}

/// Serves the request by the routes of the role.
async fn pass_on(State(admin): State<Admin>, request: Request) -> Result<Response, Failure> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path();
    let (door, role, own) = match path.strip_prefix("/v1/fleet") {
        Some(rest) => (
            &admin.fleet_listeners.controller,
            "fleet.controller",
            rest.to_owned(),
        ),
        None => {
            let id = path.strip_prefix("/v1/tasks/");
            let own = match id {
                Some(id) => format!("/hit/{id}"),
                None if head.method == http::Method::POST => "/hit".to_owned(),
                None => "/hits".to_owned(),
            };
            (&admin.fleet_listeners.worker, "fleet.worker", own)
        }
    };
    let Some((router, key)) = door.0.get() else {
        let text = format!(
            "`{role}` does not run in this process; `towpath ps` lists the processes with their roles"
        );
        return Err(towpath_core::Error::not_found(text).into());
    };
    let query = head
        .uri
        .query()
        .map_or_else(String::new, |query| format!("?{query}"));
    let unreadable = |_| Problem::new(http::StatusCode::BAD_REQUEST, "the path cannot be read");
    let own = PathAndQuery::try_from(format!("{own}{query}")).map_err(unreadable)?;
    head.uri = Uri::from(own);
    head.headers.remove(header::AUTHORIZATION);
    let key = HeaderValue::from_str(key.expose()).map_err(|_| {
        let text =
            "the fleet's key cannot be sent in a header; set `fleet.api_keys` to printable ASCII";
        Problem::new(http::StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    head.headers.insert("x-api-key", key);
    // Parameters of the outer router's path would count as those of the inner one.
    let peer = head.extensions.remove::<Peer>();
    head.extensions.clear();
    if let Some(peer) = peer {
        head.extensions.insert(peer);
    }
    let answered = router
        .clone()
        .oneshot(Request::from_parts(head, body))
        .await;
    let answer = answered.unwrap_or_else(|never| match never {});
    Ok(without_envelope(answer).await)
}

/// The data of a success; anything else as it is.
async fn without_envelope(answer: Response) -> Response {
    if !answer.status().is_success() {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_ANSWER).await else {
        let text = "the answer is too long; ask for fewer at once";
        return Problem::new(http::StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    };
    let mut whole: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let data = format!("{}\n", whole["data"].take());
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(data))
}
