//! `fleet.controller` and `fleet.worker`.

use serde_json::{Value, json};

use super::operation::{
    Errors, Operation, between, boolean, integer, list, nullable, object, reference, string, time,
    uuid,
};

fn operation(
    method: &'static str,
    path: &'static str,
    id: &str,
    tag: &str,
    summary: &str,
) -> Operation {
    Operation::new(method, path, id, tag, summary).errors(Errors::Envelope)
}

/// The envelope around data.
fn enveloped(data: Value) -> Value {
    object(&[
        ("request_id", uuid()),
        ("status", integer(200)),
        ("success", boolean()),
        ("message", string()),
        ("data?", data),
    ])
}

fn page(operation: Operation) -> Operation {
    operation.query(
        "limit",
        between(1, 1_000),
        "Maximum entries of a page [default: 100].",
    )
}

/// The newest configuration has to be this one for the change to be made.
fn conditional(operation: Operation) -> Operation {
    operation
        .header("If-Match", "`ETag` of the newest configuration.")
        .header("If-None-Match", "`*` for the first configuration only.")
        .refuses(&[(412, "The newest configuration differs")])
}

pub(super) fn controller() -> Vec<Operation> {
    let tag = "fleet";
    let config = || enveloped(reference("Config"));
    let get = |path, id, summary| operation("get", path, id, tag, summary).keyed();
    let post = |path, id, summary| operation("post", path, id, tag, summary).keyed();
    let strings = || json!({ "type": "object", "additionalProperties": string() });
    let rollout = object(&[("steps", list(string())), ("bake_seconds?", integer(0))]);
    let publication = object(&[
        ("data", strings()),
        (
            "poll_interval_seconds?",
            nullable(json!({ "type": "integer", "maximum": 86_400 })),
        ),
        ("schema?", nullable(json!({ "type": "object" }))),
        ("rollout?", nullable(rollout)),
    ]);
    let registration = object(&[
        ("hostname", string()),
        ("ip_address", string()),
        ("port", between(1, 65_535)),
        ("labels?", strings()),
    ]);
    let registered = object(&[
        ("agent_id", uuid()),
        ("status", string()),
        ("poll_url", string()),
        ("poll_interval_seconds", integer(1)),
        ("agent_key", string()),
    ]);
    let report = object(&[
        ("version", integer(0)),
        (
            "status",
            json!({ "enum": ["applied", "failed", "rolled_back"] }),
        ),
        ("error?", nullable(string())),
    ]);
    let agent = || object(&[("agent_id", uuid())]);
    let no_version = [(404, "Unknown version")];
    let no_agent = [(404, "Unknown agent")];
    vec![
        conditional(post("/config", "publishConfig", "Publish a configuration"))
            .json(publication)
            .answers_json(201, "The configuration with its version", config())
            .sets(201, "ETag", "Entity tag of the configuration."),
        get(
            "/config",
            "newestConfig",
            "Read the newest configuration for the caller",
        )
        .query(
            "wait",
            string(),
            "Seconds to wait for a new configuration, at most 60: `30`, or `30s`.",
        )
        .header(
            "If-None-Match",
            "`ETag` of the configuration that the client has.",
        )
        .header(
            "X-Agent-Id",
            "Id of the agent, for requests with a fleet key.",
        )
        .answers_json(200, "The configuration", config())
        .sets(200, "ETag", "Entity tag of the configuration.")
        .answers_empty(304, "Not modified")
        .refuses(&[
            (404, "No configuration"),
            (412, "The current configuration differs"),
        ]),
        get("/config/{version}", "configVersion", "Read a version")
            .answers_json(200, "The configuration", config())
            .refuses(&no_version),
        page(get(
            "/config/history",
            "configHistory",
            "List versions, newest first",
        ))
        .query("before", integer(0), "Last version of the previous page.")
        .answers_json(200, "A page", enveloped(list(reference("Config")))),
        get("/config/diff", "configDiff", "Compare two versions")
            .required_query("from", integer(0), "The old version.")
            .required_query("to", integer(0), "The new version.")
            .answers_json(200, "Differences", enveloped(json!({ "type": "object" })))
            .refuses(&no_version),
        conditional(post(
            "/config/rollback",
            "rollBack",
            "Publish an old version again",
        ))
        .json(object(&[("version", integer(1))]))
        .answers_json(201, "The configuration with its version", config())
        .refuses(&no_version),
        post(
            "/config/restore",
            "restoreConfig",
            "Return a configuration that the controller lost",
        )
        .json(reference("Config"))
        .answers_json(
            200,
            "Whether the configuration was restored",
            enveloped(object(&[("restored", boolean())])),
        )
        .refuses(&[(403, "The signature is not of this controller")]),
        get("/rollout", "showRollout", "Show the newest rollout")
            .answers_json(200, "The rollout", enveloped(reference("Rollout")))
            .refuses(&[(404, "No rollout yet")]),
        post("/rollout/stop", "stopRollout", "Stop the running rollout")
            .body(
                false,
                &[(
                    "application/json",
                    object(&[("reason?", nullable(string()))]),
                )],
            )
            .answers_json(200, "The rollout", enveloped(reference("Rollout")))
            .refuses(&[(409, "No rollout is running")]),
        page(get("/audit", "audit", "List audit entries, newest first")).answers_json(
            200,
            "A page",
            enveloped(list(json!({ "type": "object" }))),
        ),
        post("/register", "register", "Register an agent")
            .json(registration)
            .answers_json(201, "The agent's id and key", enveloped(registered))
            .refuses(&[(409, "The identity belongs to another machine")]),
        page(get("/agents", "listAgents", "List agents"))
            .query("after", uuid(), "Last agent of the previous page.")
            .answers_json(200, "A page", enveloped(list(reference("Agent")))),
        operation(
            "delete",
            "/agents/{id}",
            "removeAgent",
            tag,
            "Remove an agent",
        )
        .keyed()
        .answers_json(200, "The agent was removed", enveloped(agent()))
        .refuses(&no_agent),
        post(
            "/agents/{id}/report",
            "report",
            "Report the version that an agent applied",
        )
        .json(report)
        .answers_json(200, "The report was stored", enveloped(agent()))
        .refuses(&no_agent),
    ]
}

pub(super) fn controller_schemas() -> Value {
    let mut schemas = worker_schemas();
    schemas["Rollout"] = object(&[
        ("version", integer(1)),
        ("stable", integer(0)),
        ("steps", list(string())),
        ("step", integer(0)),
        ("step_at", time()),
        ("bake_seconds", integer(0)),
        ("status", string()),
        ("reason?", string()),
    ]);
    schemas["Agent"] = object(&[
        ("agent_id", uuid()),
        ("hostname", string()),
        ("ip_address", string()),
        ("port", between(1, 65_535)),
        ("labels", json!({ "type": "object" })),
        ("status", string()),
        ("registered_at", time()),
        ("last_seen", time()),
        ("applied_version", nullable(integer(0))),
        ("failed_version", nullable(integer(0))),
        ("last_error", nullable(string())),
    ]);
    schemas
}

pub(super) fn worker() -> Vec<Operation> {
    let tag = "tasks";
    let config = || enveloped(reference("Config"));
    let task = || enveloped(reference("Task"));
    let run = |method, path, id, summary| operation(method, path, id, tag, summary).perhaps_keyed();
    let started = || {
        enveloped(object(&[
            ("task_id", uuid()),
            ("status", reference("TaskStatus")),
        ]))
    };
    let body = object(&[("callback_url?", nullable(string()))]);
    let unconfigured = [(409, "There is no configuration with a `url`")];
    let no_task = [(404, "Unknown or expired task")];
    vec![
        run(
            "get",
            "/config",
            "workerConfig",
            "Read the current configuration",
        )
        .answers_json(200, "The configuration", config())
        .answers_empty(304, "Not modified")
        .refuses(&[
            (404, "No configuration"),
            (412, "The current configuration differs"),
        ]),
        run(
            "post",
            "/config",
            "configure",
            "Apply a configuration to the worker",
        )
        .json(reference("Config"))
        .answers_json(
            200,
            "The configuration is in force",
            enveloped(object(&[("version", integer(0))])),
        )
        .refuses(&[(409, "A newer configuration is in force")]),
        run(
            "get",
            "/hit",
            "startHit",
            "Start a task: request the configured URL",
        )
        .idempotent()
        .answers_json(202, "The task was queued", started())
        .refuses(&unconfigured),
        run(
            "post",
            "/hit",
            "startHitWith",
            "Start a task whose result is posted to a URL",
        )
        .idempotent()
        .body(false, &[("application/json", body)])
        .answers_json(202, "The task was queued", started())
        .refuses(&unconfigured),
        run("get", "/hit/{id}", "showTask", "Show a task and its result")
            .query(
                "wait",
                integer(0),
                "Seconds to wait for the result, 60 at most.",
            )
            .answers_json(200, "The task", task())
            .refuses(&no_task),
        run("delete", "/hit/{id}", "cancelTask", "Cancel a task")
            .answers_json(200, "The changed task", task())
            .refuses(&no_task),
        page(run("get", "/hits", "listTasks", "List tasks"))
            .query("after", uuid(), "Last task of the previous page.")
            .answers_json(200, "A page", enveloped(list(reference("Task")))),
    ]
}

pub(super) fn worker_schemas() -> Value {
    json!({
        "Failure": object(&[
            ("request_id", uuid()), ("status", integer(400)), ("success", boolean()),
            ("message", string()),
            ("error", object(&[("code", string()), ("message", string())])),
        ]),
        "Config": object(&[
            ("id?", string()), ("version?", integer(0)),
            ("data?", json!({ "type": "object", "additionalProperties": string() })),
            ("poll_interval_seconds?", integer(0)), ("epoch?", string()),
            ("schema?", json!({})), ("author?", string()), ("rolls_back_to?", integer(0)),
            ("created_at?", string()), ("signature?", string()), ("proof?", object(&[("public_key", string()), ("signature", string())])),
        ]),
        "TaskStatus": { "enum": ["queued", "running", "retrying", "completed", "failed", "cancelled"] },
        "Task": object(&[
            ("task_id", uuid()), ("status", reference("TaskStatus")), ("status_code?", between(100, 999)),
            ("headers?", json!({ "type": "object", "additionalProperties": string() })),
            ("body?", string()), ("body_encoding?", string()), ("truncated?", boolean()),
            ("error?", string()), ("url", string()), ("method", string()), ("attempts", integer(0)),
            ("created_at", time()), ("finished_at?", time()), ("duration_ms?", integer(0)),
            ("callback_url?", string()),
        ]),
    })
}
