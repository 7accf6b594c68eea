//! `accounts.api`: limits, users, health.

use serde_json::{Value, json};

use super::operation::{
    Errors, Operation, between, boolean, list, nullable, number, object, reference, string, time,
    uuid,
};

pub(super) fn routes() -> Vec<Operation> {
    let mut all = limits();
    all.extend(users());
    all.extend(health());
    all
}

fn limit(method: &'static str, path: &'static str, id: &str, summary: &str) -> Operation {
    Operation::new(method, path, id, "limits", summary).errors(Errors::Limits)
}

fn limits() -> Vec<Operation> {
    let key = "Whose limit.";
    let policy = "Name of a limit of `accounts.limits`; `default` unless said.";
    let taken = || {
        object(&[
            ("allowed", boolean()),
            ("remaining_tokens", number()),
            ("success", boolean()),
            ("message", string()),
            ("retry_after_seconds?", number()),
        ])
    };
    let one = object(&[
        ("key?", string()),
        ("tokens?", number()),
        ("policy?", string()),
    ]);
    let mode = json!({ "enum": ["all", "each"] });
    let takes = json!({ "oneOf": [
        list(one.clone()),
        object(&[("takes", list(one)), ("mode", mode)]),
    ] });
    let results = || {
        object(&[
            ("success", boolean()),
            ("message", string()),
            ("key?", string()),
            ("results", list(json!({ "type": "object" }))),
        ])
    };
    let state = object(&[
        ("key", string()),
        ("current_tokens", number()),
        ("capacity", number()),
        ("refill_rate", number()),
        ("last_refill_time", string()),
        ("ttl_seconds", number()),
        ("success", boolean()),
    ]);
    vec![
        limit(
            "get",
            "/api/bucket/check",
            "checkLimit",
            "Show how a limit stands",
        )
        .required_query("key", string(), key)
        .query("policy", string(), policy)
        .answers_json(200, "How it stands", state),
        limit("post", "/api/bucket/consume", "takeTokens", "Take tokens")
            .required_query("key", string(), key)
            .query("tokens", number(), "How many, 1 unless said.")
            .query("policy", string(), policy)
            .answers_json(200, "They were taken", taken())
            .answers_json(
                429,
                "They were not; `Retry-After` says when they could be",
                taken(),
            ),
        limit(
            "post",
            "/api/bucket/bulk-consume",
            "takeTokensOfSeveral",
            "Take tokens of several keys",
        )
        .query("key", string(), "The key of takes that name none.")
        .query("policy", string(), policy)
        .body(false, &[("application/json", takes)])
        .answers_json(200, "What became of each take", results())
        .answers_json(429, "One take did not fit, and none was made", results()),
        limit(
            "post",
            "/api/bucket/reset",
            "resetLimit",
            "Fill a limit up again",
        )
        .required_query("key", string(), key)
        .answers_json(
            200,
            "It is full",
            object(&[
                ("success", boolean()),
                ("key", string()),
                ("message", string()),
            ]),
        ),
    ]
}

fn users() -> Vec<Operation> {
    let tag = "users";
    let user = || reference("User");
    let said = || object(&[("email", string()), ("name", string())]);
    let one = "/api/users/{id}";
    let version = "The `ETag` of the user as it was read: the change is made to this version only.";
    vec![
        Operation::new("post", "/api/users", "createUser", tag, "Create a user")
            .idempotent()
            .json(said())
            .answers_json(201, "The user; an event follows", user())
            .sets(201, "ETag", "The version of the user.")
            .sets(201, "Location", "The path of the user.")
            .refuses(&[(409, "Another user has this email")]),
        Operation::new("get", "/api/users", "listUsers", tag, "List users")
            .query(
                "limit",
                between(1, 1_000),
                "Most of one page, 100 unless said.",
            )
            .query("cursor", string(), "`next_cursor` of the page before.")
            .answers_json(
                200,
                "A page",
                object(&[("users", list(user())), ("next_cursor", nullable(uuid()))]),
            ),
        Operation::new("get", one, "showUser", tag, "Show a user")
            .header("If-None-Match", "`ETag` of what the client has.")
            .answers_json(200, "The user", user())
            .sets(200, "ETag", "The version of the user.")
            .answers_empty(304, "The client has it")
            .refuses(&[
                (404, "There is no such user"),
                (412, "Another version is in force"),
            ]),
        Operation::new("put", one, "updateUser", tag, "Change a user")
            .header("If-Match", version)
            .json(said())
            .answers_json(200, "The user as it is now; an event follows", user())
            .sets(200, "ETag", "The version of the user.")
            .refuses(&[
                (404, "There is no such user"),
                (409, "Another user has this email"),
                (412, "Another version is in force"),
            ]),
        Operation::new("delete", one, "deleteUser", tag, "Delete a user")
            .header("If-Match", version)
            .answers_empty(204, "It is gone; an event follows")
            .refuses(&[
                (404, "There is no such user"),
                (412, "Another version is in force"),
            ]),
        Operation::new(
            "post",
            "/api/test/crash",
            "crash",
            tag,
            "Stop the process behind a commit, where `accounts.crash_test` allows it",
        )
        .json(object(&[
            ("email", string()),
            ("name", string()),
            ("crash_after_db?", boolean()),
        ]))
        .answers_text(200, "The user was created, and the process goes on")
        .refuses(&[
            (403, "Crash tests are off"),
            (409, "Another user has this email"),
        ]),
    ]
}

fn health() -> Vec<Operation> {
    let one = || {
        object(&[
            ("status", string()),
            ("service", string()),
            ("timestamp", number()),
        ])
    };
    let all = || {
        object(&[
            ("status", string()),
            ("services", json!({ "type": "object" })),
            ("timestamp", time()),
        ])
    };
    let get = |path, id, summary| Operation::new("get", path, id, "health", summary);
    vec![
        get("/health", "health", "Whether limits and users work")
            .answers_json(200, "Both do", all())
            .answers_json(503, "One does not", all()),
        get("/health/bucket", "limitHealth", "Whether limits work")
            .answers_json(200, "They do", one())
            .answers_json(503, "They do not", one()),
        get("/health/users", "userHealth", "Whether users work")
            .answers_json(200, "They do", one())
            .answers_json(503, "They do not", one()),
    ]
}

pub(super) fn schemas() -> Value {
    json!({
        "User": object(&[
            ("id", uuid()), ("email", string()), ("name", string()),
            ("created_at", time()), ("updated_at", time()),
        ]),
    })
}
