//! `ingest.api`.

use serde_json::{Value, json};

use super::operation::{Operation, boolean, integer, list, object, reference, string, uuid};

const TAG: &str = "ingest";

pub(super) fn routes() -> Vec<Operation> {
    let message = || reference("Message");
    vec![
        Operation::new("post", "/enqueue", "enqueue", TAG, "Enqueue a message")
            .idempotent()
            .header("traceparent", "W3C trace context of the message.")
            .body(
                true,
                &[
                    ("application/json", message()),
                    ("text/plain", string()),
                    ("application/octet-stream", json!({})),
                ],
            )
            .answers_json(
                200,
                "The message is durable and will be delivered",
                reference("Enqueued"),
            )
            .sets(
                200,
                "Idempotency-Replayed",
                "`true` when the key was known: nothing was enqueued again",
            ),
        Operation::new(
            "post",
            "/enqueue/batch",
            "enqueueBatch",
            TAG,
            "Enqueue several messages",
        )
        .idempotent()
        .body(
            true,
            &[
                ("application/json", list(json!({}))),
                ("application/x-ndjson", string()),
                ("text/plain", string()),
            ],
        )
        .answers_json(200, "All messages were enqueued", reference("Batch"))
        .answers_json(
            207,
            "Some messages were rejected; see `results`",
            reference("Batch"),
        ),
        Operation::new(
            "get",
            "/healthz",
            "ingestHealth",
            TAG,
            "Health of the queue",
        )
        .answers_text(200, "`ok`")
        .refuses(&[(503, "The backend is unavailable")]),
    ]
}

pub(super) fn schemas() -> Value {
    let result = json!({ "oneOf": [
        object(&[("id", uuid()), ("duplicate?", boolean())]),
        object(&[("error", string())]),
    ] });
    json!({
        "Message": object(&[("message", string())]),
        "Enqueued": object(&[
            ("enqueued", boolean()), ("queue", string()), ("message", string()), ("id", uuid()),
        ]),
        "Batch": object(&[
            ("enqueued", integer(0)), ("refused", integer(0)), ("queue", string()),
            ("results", list(result)),
        ]),
    })
}
