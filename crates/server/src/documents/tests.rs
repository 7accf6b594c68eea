//! The documents against the sources of the routes, and the committed copies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;

/// The sources of routes, and the parts that document them.
const SOURCES: &[(&str, &[Part])] = &[
    ("apps/ingest/api.rs", &[Part::Ingest]),
    ("apps/orders/api.rs", &[Part::Orders, Part::Stock]),
    ("apps/orders/dashboard.rs", &[Part::Dashboard]),
    ("apps/lines/api.rs", &[Part::Lines]),
    ("apps/accounts/limits.rs", &[Part::Accounts]),
    ("apps/accounts/users.rs", &[Part::Accounts]),
    ("apps/accounts/health.rs", &[Part::Accounts]),
    ("apps/fleet/controller_routes.rs", &[Part::Controller]),
    ("apps/fleet/agent_routes.rs", &[Part::Controller]),
    ("apps/fleet/worker_routes.rs", &[Part::Worker]),
];

/// Sources of routes that are not of roles: the admin listener documents its own.
const OTHERS: [&str; 6] = [
    "dashboard/mod.rs",
    "admin/mod.rs",
    "admin/routes.rs",
    "admin/fleet.rs",
    "telemetry/probes.rs",
    "http/page.rs",
];

type Routes = BTreeSet<(String, String)>;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The methods and paths of every `.route(…)` of a source.
fn routes(source: &str) -> Routes {
    let mut routes = Routes::new();
    for call in source.split(".route(").skip(1) {
        let mut depth = 1;
        let end = call.find(|character| {
            depth += match character {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        let call = &call[..end.unwrap()];
        let (path, handlers) = call.split_once(',').unwrap();
        let path = path.trim();
        let path = match path.strip_prefix('"') {
            Some(literal) => literal.trim_end_matches('"'),
            None => {
                let declared = source.split(&format!("const {path}: &str = \"")).nth(1);
                declared.unwrap().split('"').next().unwrap()
            }
        };
        for method in ["get", "post", "put", "patch", "delete"] {
            let is_there = handlers
                .match_indices(&format!("{method}("))
                .any(|(at, _)| {
                    let before = handlers[..at].chars().next_back();
                    before.is_none_or(|before| !before.is_alphanumeric() && before != '_')
                });
            if is_there {
                routes.insert((method.to_owned(), path.to_owned()));
            }
        }
    }
    routes
}

fn documented(document: &Value) -> Routes {
    let paths = document["paths"].as_object().unwrap();
    let pairs = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(|method| (method.clone(), path.clone()))
    });
    pairs.collect()
}

#[test]
fn every_route_is_documented_and_every_documented_one_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&root, &mut all);
    let mut known: Vec<(&[Part], Routes)> = Vec::new();
    for file in all {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        if !text.contains(".route(") || OTHERS.contains(&name) || name.starts_with("documents/") {
            continue;
        }
        let source = SOURCES.iter().find(|(source, _)| *source == name);
        let (_, parts) = source.unwrap_or_else(|| panic!("{name} has routes; document them"));
        match known.iter_mut().find(|(these, _)| these == parts) {
            Some((_, routes_of)) => routes_of.extend(routes(text)),
            None => known.push((parts, routes(text))),
        }
    }
    assert_eq!(known.len(), 7);
    for (parts, routes) in known {
        let mut written = documented(&document("", parts));
        written.retain(|(_, path)| path != "/" && path != "/openapi.json");
        assert_eq!(routes, written, "{parts:?}");
    }
}

/// Every reference of a document.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value.as_str()) {
                    ("$ref", Some(to)) => drop(found.insert(to.to_owned())),
                    _ => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn names_of_operations_and_schemas_are_their_own() {
    for (name, document) in committed() {
        let mut ids = BTreeMap::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap().to_owned();
                let before = ids.insert(id.clone(), (path.clone(), method.clone()));
                assert_eq!(before, None, "{name}: {id}");
                assert!(operation["summary"].is_string() || name == "admin", "{id}");
            }
        }
        let mut wanted = BTreeSet::new();
        references(&document, &mut wanted);
        for reference in wanted {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{name}: {reference}");
        }
    }
}

/// The documents of the listeners of `towpath up`.
fn committed() -> Vec<(&'static str, Value)> {
    let public = [Part::Ingest, Part::Orders, Part::Stock, Part::Accounts];
    vec![
        ("public", document("Towpath", &public)),
        ("lines", document("Towpath lines", &[Part::Lines])),
        (
            "dashboard",
            document("Towpath orders", &[Part::Dashboard, Part::Stock]),
        ),
        (
            "controller",
            document("Towpath fleet controller", &[Part::Controller]),
        ),
        ("worker", document("Towpath fleet worker", &[Part::Worker])),
        ("admin", crate::admin::document()),
    ]
}

#[test]
fn the_committed_documents_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/openapi");
    for (name, document) in committed() {
        let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
        let path = folder.join(format!("{name}.json"));
        if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == text, "{name}: run with TOWPATH_UPDATE_DOCS=1");
    }
}

#[test]
fn the_landing_page_names_every_route() {
    for (name, document) in committed() {
        let page = landing(&document);
        for (method, path) in documented(&document) {
            let method = method.to_uppercase();
            let line = page.lines().find(|line| {
                line.split_whitespace()
                    .take(2)
                    .eq([method.as_str(), path.as_str()])
            });
            assert!(line.is_some(), "{name}: {method} {path}");
        }
        assert!(page.contains("/openapi.json"));
    }
}
