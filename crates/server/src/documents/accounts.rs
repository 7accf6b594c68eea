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
    let key = "Key of the limit, e.g. a client.";
    let policy = "Name of a limit of `accounts.limits` [default: `default`].";
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
            "Show the state of a limit",
        )
        .required_query("key", string(), key)
        .query("policy", string(), policy)
        .answers_json(200, "State of the limit", state),
        limit("post", "/api/bucket/consume", "takeTokens", "Take tokens")
            .required_query("key", string(), key)
            .query("tokens", number(), "Number of tokens [default: 1].")
            .query("policy", string(), policy)
            .answers_json(200, "The tokens were taken", taken())
            .answers_json(429, "Not enough tokens; retry after `Retry-After`", taken()),
        limit(
            "post",
            "/api/bucket/bulk-consume",
            "takeTokensOfSeveral",
            "Take tokens of several keys",
        )
        .query("key", string(), "Default key of the takes.")
        .query("policy", string(), policy)
        .body(false, &[("application/json", takes)])
        .answers_json(200, "Result of each take", results())
        .answers_json(
            429,
            "One take exceeds its limit; no tokens were taken",
            results(),
        ),
        limit(
            "post",
            "/api/bucket/reset",
            "resetLimit",
            "Reset a limit to its capacity",
        )
        .required_query("key", string(), key)
        .answers_json(
            200,
            "The limit was reset",
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
    let body = || object(&[("email", string()), ("name", string())]);
    let one = "/api/users/{id}";
    let version = "The `ETag` of the user as it was read: the change is made to this version only.";
    vec![
        Operation::new("post", "/api/users", "createUser", tag, "Create a user")
            .idempotent()
            .json(body())
            .answers_json(201, "The user; an event follows", user())
            .sets(201, "ETag", "The version of the user.")
            .sets(201, "Location", "The path of the user.")
            .refuses(&[(409, "Another user has this email")]),
        Operation::new("get", "/api/users", "listUsers", tag, "List users")
            .query(
                "limit",
                between(1, 1_000),
                "Maximum users of a page [default: 100].",
            )
            .query("cursor", string(), "`next_cursor` of the previous page.")
            .answers_json(
                200,
                "A page",
                object(&[("users", list(user())), ("next_cursor", nullable(uuid()))]),
            ),
        Operation::new("get", one, "showUser", tag, "Show a user")
            .header("If-None-Match", "`ETag` of the client's copy.")
            .answers_json(200, "The user", user())
            .sets(200, "ETag", "The version of the user.")
            .answers_empty(304, "Not modified")
            .refuses(&[(404, "Unknown user"), (412, "The current version differs")]),
        Operation::new("put", one, "updateUser", tag, "Change a user")
            .header("If-Match", version)
            .json(body())
            .answers_json(200, "The changed user; an event follows", user())
            .sets(200, "ETag", "The version of the user.")
            .refuses(&[
                (404, "Unknown user"),
                (409, "Another user has this email"),
                (412, "The current version differs"),
            ]),
        Operation::new("delete", one, "deleteUser", tag, "Delete a user")
            .header("If-Match", version)
            .answers_empty(204, "The user was deleted; an event follows")
            .refuses(&[(404, "Unknown user"), (412, "The current version differs")]),
        Operation::new(
            "post",
            "/api/test/crash",
            "crash",
            tag,
            "Stop the process after a commit; requires `accounts.crash_test`",
        )
        .json(object(&[
            ("email", string()),
            ("name", string()),
            ("crash_after_db?", boolean()),
        ]))
        .answers_text(200, "The user was created; the process continues")
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
        get("/health", "health", "Health of limits and users")
            .answers_json(200, "Both work", all())
            .answers_json(503, "At least one does not work", all()),
        get("/health/bucket", "limitHealth", "Health of limits")
            .answers_json(200, "Healthy", one())
            .answers_json(503, "Unhealthy", one()),
        get("/health/users", "userHealth", "Health of users")
            .answers_json(200, "Healthy", one())
            .answers_json(503, "Unhealthy", one()),
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
