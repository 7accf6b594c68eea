//! Parts of the OpenAPI document beside the routes: authentication and error responses.

use http::Method;
use serde_json::json;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterIn};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr};
use utoipa::{Modify, OpenApi as _};

use super::jobs::BATCH;
use super::routes::MESSAGES;
use super::wire::ProblemView;
use crate::documents::{fleet_for_operators, fleet_schemas};
use crate::http::Asking;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Towpath admin API",
        description = "Queues, messages and dead letters of a running Towpath. Errors are problem details (RFC 9457)."
    ),
    components(schemas(ProblemView)),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Head;

/// Every operation wants the token.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The token in the file `admin.token` of the data folder.",
            ))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The document before its routes.
pub(super) fn head() -> OpenApi {
    Head::openapi()
}

/// The operations that have query parameters.
pub(super) fn queries(document: &OpenApi) -> Vec<Asking> {
    let probes = ["/readyz", "/readyz/{role}"];
    let mut queries: Vec<Asking> = probes.map(|path| (Method::GET, path.into())).into();
    for (path, item) in &document.paths.paths {
        for (method, operation) in [
            (Method::GET, item.get.as_ref()),
            (Method::POST, item.post.as_ref()),
            (Method::PUT, item.put.as_ref()),
            (Method::DELETE, item.delete.as_ref()),
        ] {
            let parameters = operation.and_then(|operation| operation.parameters.as_ref());
            let mut parameters = parameters.into_iter().flatten();
            if parameters.any(is_of_query) {
                queries.push((method, path.clone().into()));
            }
        }
    }
    for operation in fleet_for_operators() {
        let method = match operation.method {
            "get" => Method::GET,
            "delete" => Method::DELETE,
            _ => Method::POST,
        };
        let parameters = operation.value["parameters"].as_array();
        let mut parameters = parameters.into_iter().flatten();
        if parameters.any(|parameter| parameter["in"] == "query") {
            queries.push((method, operation.path.into()));
        }
    }
    queries
}

fn is_of_query(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}

/// The document with the routes beside `/v1`, which want no token.
pub(super) fn whole(document: OpenApi) -> serde_json::Value {
    let mut whole = serde_json::to_value(document).unwrap_or_default();
    for (path, id, summary, answers) in OPEN {
        let answer = |status: &str| match status {
            "200" => "As it should be",
            _ => "Not, or not yet",
        };
        let responses = answers.iter().map(|(status, kind)| {
            let response = json!({
                "description": answer(status),
                "content": { *kind: { "schema": {} } },
            });
            ((*status).to_owned(), response)
        });
        whole["paths"][path]["get"] = json!({
            "operationId": id, "summary": summary, "tags": ["about"], "security": [],
            "responses": responses.collect::<serde_json::Map<_, _>>(),
        });
        if path.ends_with("{file}") {
            whole["paths"][path]["get"]["parameters"] = json!([{
                "name": "file", "in": "path", "required": true, "description": "The name of the file",
                "schema": { "type": "string" },
            }]);
        }
        if path.ends_with("{role}") {
            whole["paths"][path]["get"]["parameters"] = json!([{
                "name": "role", "in": "path", "required": true, "description": "A role of this process",
                "schema": { "type": "string" },
            }]);
        }
    }
    for operation in fleet_for_operators() {
        let (path, method) = (operation.path, operation.method);
        whole["paths"][path][method] = operation.value;
    }
    for (name, schema) in fleet_schemas() {
        whole["components"]["schemas"][name] = schema;
    }
    whole["servers"] = json!([{ "url": "/" }]);
    whole
}

/// Path, name, summary, and the answers with their media types.
type Open = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const OPEN: &[Open] = &[
    (
        "/",
        "landing",
        "List the routes of this listener",
        &[("200", "text/plain")],
    ),
    (
        "/openapi.json",
        "document",
        "Describe the routes of this listener",
        &[("200", "application/json")],
    ),
    (
        "/metrics",
        "metrics",
        "Metrics for Prometheus",
        &[("200", "text/plain")],
    ),
    (
        "/ui/{file}",
        "asset",
        "A file of the dashboard",
        &[
            ("200", "text/javascript"),
            ("404", "application/problem+json"),
        ],
    ),
    (
        "/livez",
        "livez",
        "Liveness of the process",
        &[("200", "text/plain")],
    ),
    (
        "/readyz",
        "readyz",
        "Readiness of the process; `?verbose` for one line per check",
        &[("200", "text/plain"), ("503", "text/plain")],
    ),
    (
        "/readyz/{role}",
        "role_readyz",
        "Readiness of a role and its dependencies; `?verbose` for one line per check",
        &[
            ("200", "text/plain"),
            ("404", "text/plain"),
            ("503", "text/plain"),
        ],
    ),
];

/// Which operations a refusal belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    All,
    /// They name something that must be there.
    Named,
    Body,
    Change,
}

const REFUSALS: &[(&str, To, &str)] = &[
    ("400", To::All, "Invalid request; see `detail`"),
    ("401", To::All, "The token is missing or wrong"),
    ("403", To::All, "Requests of web pages are not allowed"),
    ("404", To::Named, "The named resource does not exist"),
    ("408", To::Body, "The body was not received in time"),
    ("413", To::Body, "The body exceeds the size limit"),
    ("415", To::Body, "Unsupported content type"),
    ("421", To::All, "Host name not allowed"),
    ("422", To::Body, "The JSON body does not match the schema"),
    ("429", To::Change, "Full; retry after `Retry-After`"),
    ("500", To::All, "Internal error; see the log"),
    ("501", To::All, "Not supported by the backend"),
    ("503", To::All, "Overloaded, or the backend is unavailable"),
];

/// Adds to each operation how it may refuse.
pub(super) fn add_refusals(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let queue = path.contains("{queue}");
        let stream = path.contains("{stream}");
        for (method, operation) in [
            (HttpMethod::Get, item.get.as_mut()),
            (HttpMethod::Post, item.post.as_mut()),
            (HttpMethod::Put, item.put.as_mut()),
            (HttpMethod::Delete, item.delete.as_mut()),
        ] {
            let Some(operation) = operation else { continue };
            let creates_the_queue = match &method {
                HttpMethod::Post => [MESSAGES, BATCH].contains(&path.as_str()),
                _ => method == HttpMethod::Put,
            };
            let says_so = operation.responses.responses.contains_key("404");
            for (status, to, description) in REFUSALS {
                let applies = match to {
                    To::All => true,
                    To::Named => says_so || stream || (queue && !creates_the_queue),
                    To::Body => operation.request_body.is_some(),
                    To::Change => matches!(method, HttpMethod::Post | HttpMethod::Put),
                };
                if applies {
                    refuse(operation, status, description);
                }
            }
        }
    }
}

fn refuse(operation: &mut Operation, status: &str, description: &str) {
    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
    let response = ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", problem)
        .build();
    operation
        .responses
        .responses
        .insert(status.to_owned(), response.into());
}
