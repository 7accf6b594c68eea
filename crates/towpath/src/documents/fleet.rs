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
        "Most of one page, 100 unless said.",
    )
}

/// The newest configuration has to be this one for the change to be made.
fn conditional(operation: Operation) -> Operation {
    operation
        .header("If-Match", "`ETag` of the newest configuration.")
        .header("If-None-Match", "`*` for the first configuration only.")
        .refuses(&[(412, "Another configuration is the newest")])
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
    let no_version = [(404, "There is no such version")];
    let no_agent = [(404, "There is no such agent")];
    vec![
        conditional(post("/config", "publishConfig", "Publish a configuration"))
            .json(publication)
            .answers_json(201, "The configuration with its version", config())
            .sets(201, "ETag", "Names the configuration."),
        get(
            "/config",
            "newestConfig",
            "Read the configuration that the caller should have",
        )
        .query(
            "wait",
            string(),
            "Seconds to wait for another one, 60 at most: `30`, or `30s`.",
        )
        .header(
            "If-None-Match",
            "`ETag` of the configuration that the client has.",
        )
        .header("X-Agent-Id", "The agent that asks with a key of the fleet.")
        .answers_json(200, "The configuration", config())
        .sets(200, "ETag", "Names the configuration.")
        .answers_empty(304, "The client has it")
        .refuses(&[(404, "There is none"), (412, "Another one is in force")]),
        get("/config/{version}", "configVersion", "Read a version")
            .answers_json(200, "The configuration", config())
            .refuses(&no_version),
        page(get(
            "/config/history",
            "configHistory",
            "List versions, the newest first",
        ))
        .query("before", integer(0), "The last version of the page before.")
        .answers_json(200, "A page", enveloped(list(reference("Config")))),
        get("/config/diff", "configDiff", "Compare two versions")
            .required_query("from", integer(0), "The old version.")
            .required_query("to", integer(0), "The new version.")
            .answers_json(200, "What differs", enveloped(json!({ "type": "object" })))
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
            "Give back a configuration that the controller lost",
        )
        .json(reference("Config"))
        .answers_json(
            200,
            "Whether it was lost",
            enveloped(object(&[("restored", boolean())])),
        )
        .refuses(&[(403, "It was not published by this controller")]),
        get("/rollout", "showRollout", "Show the newest rollout")
            .answers_json(200, "The rollout", enveloped(reference("Rollout")))
            .refuses(&[(404, "There was none")]),
        post("/rollout/stop", "stopRollout", "Stop the rollout that runs")
            .body(
                false,
                &[(
                    "application/json",
                    object(&[("reason?", nullable(string()))]),
                )],
            )
            .answers_json(200, "The rollout", enveloped(reference("Rollout")))
            .refuses(&[(409, "None runs")]),
        page(get(
            "/audit",
            "audit",
            "List what operators did, the newest first",
        ))
        .answers_json(200, "A page", enveloped(list(json!({ "type": "object" })))),
        post("/register", "register", "Register an agent")
            .json(registration)
            .answers_json(201, "The agent's id and key", enveloped(registered))
            .refuses(&[(409, "Another machine has this identity")]),
        page(get("/agents", "listAgents", "List agents"))
            .query("after", uuid(), "The last agent of the page before.")
            .answers_json(200, "A page", enveloped(list(reference("Agent")))),
        operation(
            "delete",
            "/agents/{id}",
            "removeAgent",
            tag,
            "Remove an agent",
        )
        .keyed()
        .answers_json(200, "It is gone", enveloped(agent()))
        .refuses(&no_agent),
        post(
            "/agents/{id}/report",
            "report",
            "Report what an agent applied",
        )
        .json(report)
        .answers_json(200, "It was noted", enveloped(agent()))
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
    let wanted = object(&[("callback_url?", nullable(string()))]);
    let unconfigured = [(409, "There is no configuration with a `url`")];
    let no_task = [(404, "There is no such task, or no more")];
    vec![
        run(
            "get",
            "/config",
            "workerConfig",
            "Read the configuration in force",
        )
        .answers_json(200, "The configuration", config())
        .answers_empty(304, "The client has it")
        .refuses(&[(404, "There is none"), (412, "Another one is in force")]),
        run(
            "post",
            "/config",
            "configure",
            "Give the worker a configuration",
        )
        .json(reference("Config"))
        .answers_json(
            200,
            "It is in force",
            enveloped(object(&[("version", integer(0))])),
        )
        .refuses(&[(409, "A newer one is in force")]),
        run(
            "get",
            "/hit",
            "startHit",
            "Start a task: the configured URL is asked",
        )
        .idempotent()
        .answers_json(202, "The task will run", started())
        .refuses(&unconfigured),
        run(
            "post",
            "/hit",
            "startHitWith",
            "Start a task whose result is posted to a URL",
        )
        .idempotent()
        .body(false, &[("application/json", wanted)])
        .answers_json(202, "The task will run", started())
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
            .answers_json(200, "The task as it is now", task())
            .refuses(&no_task),
        page(run("get", "/hits", "listTasks", "List tasks"))
            .query("after", uuid(), "The last task of the page before.")
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
            ("created_at?", string()), ("signature?", string()),
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
