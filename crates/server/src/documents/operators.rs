//! The routes of `/v1/fleet` and `/v1/tasks`: those of controller and worker that operators use, with the admin token
//! in place of a key, and data in place of the envelope.

use serde_json::{Map, Value, json};

use super::fleet::{controller, controller_schemas, worker};
use super::operation::reference;

/// A route of the admin listener.
pub(crate) struct OperatorRoute {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) value: Value,
}

/// Method and path at the role, path at the admin listener, name.
const CONTROLLER: [(&str, &str, &str, &str); 10] = [
    ("post", "/config", "/v1/fleet/config", "publish_config"),
    ("get", "/config", "/v1/fleet/config", "newest_config"),
    (
        "get",
        "/config/{version}",
        "/v1/fleet/config/{version}",
        "config_version",
    ),
    (
        "get",
        "/config/history",
        "/v1/fleet/config/history",
        "config_history",
    ),
    (
        "get",
        "/config/diff",
        "/v1/fleet/config/diff",
        "config_diff",
    ),
    (
        "post",
        "/config/rollback",
        "/v1/fleet/config/rollback",
        "roll_back_config",
    ),
    ("get", "/rollout", "/v1/fleet/rollout", "show_rollout"),
    (
        "post",
        "/rollout/stop",
        "/v1/fleet/rollout/stop",
        "stop_rollout",
    ),
    ("get", "/audit", "/v1/fleet/audit", "list_audit"),
    ("get", "/agents", "/v1/fleet/agents", "list_agents"),
];

const WORKER: [(&str, &str, &str, &str); 4] = [
    ("get", "/hits", "/v1/tasks", "list_tasks"),
    ("post", "/hit", "/v1/tasks", "start_task"),
    ("get", "/hit/{id}", "/v1/tasks/{id}", "show_task"),
    ("delete", "/hit/{id}", "/v1/tasks/{id}", "cancel_task"),
];

/// Every route of `/v1/fleet` and `/v1/tasks`.
pub(crate) fn fleet_for_operators() -> Vec<OperatorRoute> {
    let mut routes = Vec::new();
    for (table, operations) in [(&CONTROLLER[..], controller()), (&WORKER[..], worker())] {
        for operation in operations {
            let is_it = |(method, path, _, _): &&(&str, &str, &str, &str)| {
                *method == operation.method && *path == operation.path
            };
            if let Some((method, _, path, id)) = table.iter().find(is_it) {
                let value = for_operators(operation.into_value(), method, id);
                routes.push(OperatorRoute {
                    method,
                    path,
                    value,
                });
            }
        }
    }
    routes
}

fn for_operators(mut value: Value, method: &str, id: &str) -> Value {
    value["operationId"] = json!(id);
    if let Some(operation) = value.as_object_mut() {
        // That of the whole document counts.
        operation.remove("security");
    }
    let mut responses = Map::new();
    let is_change = method == "post";
    for (status, mut response) in value["responses"].as_object().cloned().unwrap_or_default() {
        // Of the limits of requests on other listeners.
        if status == "429" && !is_change {
            continue;
        }
        if status.starts_with('2') {
            let schema = &mut response["content"]["application/json"]["schema"];
            *schema = schema["properties"]["data"].take();
        } else if !status.starts_with('3') {
            response["content"] = problem();
        }
        responses.insert(status, response);
    }
    for (status, text) in [
        ("401", "The token is missing or wrong"),
        ("403", "Sent by a web page"),
        (
            "404",
            "The role does not run in this process, or the resource does not exist",
        ),
        ("421", "Not a name that this listener answers to"),
    ] {
        let refusal = json!({ "description": text, "content": problem() });
        responses.insert(status.to_owned(), refusal);
    }
    value["responses"] = responses.into();
    value
}

fn problem() -> Value {
    json!({ "application/problem+json": { "schema": reference("Problem") } })
}

/// The schemas that these routes refer to.
pub(crate) fn fleet_schemas() -> Map<String, Value> {
    let mut schemas = controller_schemas();
    let schemas = schemas.as_object_mut().map(std::mem::take);
    let mut schemas = schemas.unwrap_or_default();
    // The envelope of a refusal.
    schemas.remove("Failure");
    schemas
}
