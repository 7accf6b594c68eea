//! OpenAPI documents of the listeners of roles, and the page at `/` that leads to them.
//!
//! The admin listener makes its document from its handlers; the contract of the apps is written down here by
//! app. Tests compare it with the routes, and with the answers of a running process.

mod accounts;
mod fleet;
mod ingest;
mod lines;
mod operation;
mod operators;
mod orders;

use serde_json::{Map, Value, json};

use operation::Operation;
pub(crate) use operators::{fleet_for_operators, fleet_schemas};

/// Routes that a listener carries together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `ingest.api`.
    Ingest,
    /// `POST /orders`, of `orders.gateway`.
    Orders,
    /// Orders and stock, of gateway and dashboard.
    Stock,
    /// The numbers of `orders.dashboard`.
    Dashboard,
    /// `lines.reader` and `lines.writer`.
    Lines,
    /// `accounts.api`.
    Accounts,
    /// `fleet.controller`.
    Controller,
    /// `fleet.worker`.
    Worker,
}

impl Part {
    fn routes(self) -> Vec<Operation> {
        match self {
            Self::Ingest => ingest::routes(),
            Self::Orders => orders::gateway(),
            Self::Stock => orders::stock(),
            Self::Dashboard => orders::dashboard(),
            Self::Lines => lines::routes(),
            Self::Accounts => accounts::routes(),
            Self::Controller => fleet::controller(),
            Self::Worker => fleet::worker(),
        }
    }

    fn schemas(self) -> Value {
        match self {
            Self::Ingest => ingest::schemas(),
            Self::Stock => orders::schemas(),
            Self::Accounts => accounts::schemas(),
            Self::Controller => fleet::controller_schemas(),
            Self::Worker => fleet::worker_schemas(),
            Self::Orders | Self::Dashboard | Self::Lines => json!({}),
        }
    }

    const fn has_keys(self) -> bool {
        matches!(self, Self::Controller | Self::Worker)
    }
}

/// The document of a listener with these parts.
pub fn document(title: &str, parts: &[Part]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    schemas.insert("Problem".to_owned(), operation::problem());
    for part in parts {
        for operation in part.routes() {
            let item = paths.entry(operation.path).or_insert_with(|| json!({}));
            let method = operation.method;
            item[method] = operation.into_value();
        }
        if let Value::Object(own) = part.schemas() {
            schemas.extend(own);
        }
    }
    for operation in [
        Operation::new(
            "get",
            "/",
            "landing",
            "about",
            "List the routes of this listener",
        )
        .answers_text(200, "One route a line"),
        Operation::new(
            "get",
            "/openapi.json",
            "document",
            "about",
            "Describe the routes of this listener",
        )
        .answers_json(200, "This document", json!({ "type": "object" })),
    ] {
        let item = paths.entry(operation.path).or_insert_with(|| json!({}));
        let method = operation.method;
        item[method] = operation.into_value();
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A trailing slash is ignored. Every response has an `X-Request-Id`: that of the request, or a new one.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas },
    });
    if parts.iter().any(|part| part.has_keys()) {
        document["components"]["securitySchemes"] = json!({
            "key": {
                "type": "apiKey", "in": "header", "name": "X-API-Key",
                "description": "A key of the fleet (`fleet.api_keys`), or the key that an agent got when it registered.",
            },
            "bearer": { "type": "http", "scheme": "bearer", "description": "The same key." },
        });
    }
    document
}

/// The page at `/` of a listener: its routes and where they are described, one a line.
pub fn landing(document: &Value) -> String {
    let title = document["info"]["title"].as_str().unwrap_or("Towpath");
    let version = document["info"]["version"].as_str().unwrap_or_default();
    let mut page = format!("{title} {version}\n\n");
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            let method = method.to_uppercase();
            page.push_str(&format!("{method:<7} {path:<28} {summary}\n"));
        }
    }
    page.push_str("\nOpenAPI document: /openapi.json\n");
    page
}

#[cfg(test)]
mod tests;
