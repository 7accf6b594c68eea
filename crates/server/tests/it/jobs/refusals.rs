//! Input that is refused, and scopes.

use super::*;

#[test]
fn garbage_is_refused_with_the_rule_and_changes_nothing() {
    let site = Site::embedded();
    let mut api = site.api();
    api.create("jobs", &Value::Null);
    api.send("jobs", &[], "work");
    let held = api.lease_one("jobs", "1h");
    let receipt = held["receipt"].as_str().unwrap();
    let settle = |one: Value| json!({ "settlements": [one] });
    let many: Vec<Value> = (0..1001)
        .map(|_| json!({"receipt": receipt, "disposition": "ack"}))
        .collect();
    for (path, body, status, rule) in [
        ("lease", json!({"mx": 1}), 422, "did you mean `max`?"),
        ("lease", json!({"max": 0}), 400, "1 to 1000"),
        ("lease", json!({"max": 1001}), 400, "1 to 1000"),
        ("lease", json!({"wait": "61s"}), 400, "at most `60s`"),
        ("lease", json!({"wait": 5}), 422, "must be a string"),
        ("lease", json!({"wait": "5"}), 422, "expected e.g. `30s`"),
        ("lease", json!({"lease": "1ms"}), 400, "10ms to 12h"),
        ("lease", json!([1]), 422, "must be an object"),
        ("settle", json!({}), 422, "`settlements` is required"),
        ("settle", json!({"settlements": []}), 400, "1 to 1000"),
        ("settle", json!({"settlements": many}), 400, "1 to 1000"),
        (
            "settle",
            settle(json!({"receipt": receipt})),
            422,
            "`disposition` is required",
        ),
        (
            "settle",
            settle(json!({"receipt": receipt, "disposition": "done"})),
            422,
            "dead_letter",
        ),
        (
            "settle",
            settle(json!({"receipt": receipt, "disposition": "ack", "after": "1s"})),
            400,
            "`ack` has no `after`",
        ),
        (
            "settle",
            settle(json!({"receipt": receipt, "disposition": "retry", "after": "87601h"})),
            400,
            "87600h",
        ),
        ("extend", json!({"receipts": []}), 400, "1 to 1000"),
        (
            "extend",
            json!({"receipts": [receipt], "lease": "13h"}),
            400,
            "10ms to 12h",
        ),
        ("messages/batch", json!({"messages": []}), 400, "empty"),
        (
            "messages/batch",
            json!({"messages": [{}]}),
            400,
            "exactly one of",
        ),
        (
            "messages/batch",
            json!({"messages": [{"text": "a", "json": 1}]}),
            400,
            "exactly one of",
        ),
        (
            "messages/batch",
            json!({"messages": [{"base64": "%"}]}),
            400,
            "base64",
        ),
        (
            "messages/batch",
            json!({"messages": [{"txt": "a"}]}),
            422,
            "did you mean `text`?",
        ),
        (
            "messages/batch",
            json!({"messages": ["a"]}),
            422,
            "must be an object",
        ),
    ] {
        let answer = api.call("POST", &format!("/v1/queues/jobs/{path}"), &body);
        let text = answer.text();
        assert_eq!(answer.status, status, "{path} {body}: {text}");
        assert!(text.contains(rule), "{path} {body}: {text}");
    }
    let answer = api.call("PUT", "/v1/queues/jobs", &json!({"retyr": {}}));
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("did you mean `retry`?"));
    for path in ["lease", "settle", "extend"] {
        let path = format!("/v1/queues/nothing/{path}");
        let body = match path.ends_with("lease") {
            true => Value::Null,
            false => {
                json!({"settlements": [{"receipt": "x", "disposition": "ack"}], "receipts": ["x"]})
            }
        };
        let status = api.call("POST", &path, &body).status;
        assert!([404, 422].contains(&status), "{path}: {status}");
    }
    let bearer = api.bearer.clone();
    for (header, value) in [
        ("towpath-dely", "5"),
        ("towpath-delay", "soon"),
        ("towpath-expires-in", "-1"),
    ] {
        let headers = [("authorization", bearer.as_str()), (header, value)];
        let path = "/v1/queues/jobs/messages";
        let answer = api.client.send("POST", path, &headers, b"x").unwrap();
        assert_eq!(answer.status, 400, "{header}: {}", answer.text());
    }
    let stats = api.stats("jobs");
    assert_eq!(
        (&stats["leased"], &stats["enqueued"]),
        (&json!(1), &json!(1))
    );
    api.ack("jobs", &held);
}

#[test]
fn a_key_uses_the_routes_of_its_scopes_only() {
    let site = Site::embedded();
    let mut api = site.api();
    for queue in ["emails", "secrets"] {
        api.create(queue, &Value::Null);
        api.send(queue, &[], "x");
    }
    let key = |name: &str, scope: &str| {
        let created = site.world.json(&["key", "new", name, "--scope", scope]);
        let key = created["key"]
            .as_str()
            .unwrap_or_else(|| panic!("{created}"));
        Api::new(site.world.admin, format!("Bearer {key}"))
    };
    let mut worker = key("worker", "queue:emails:lease");
    let mut producer = key("producer", "queue:emails:write");
    wait_until("the keys", Duration::from_secs(10), || {
        let lease = |api: &mut Api| {
            let path = "/v1/queues/emails/lease";
            api.call("POST", path, &json!({"wait": "0s", "lease": "10ms"}))
                .status
        };
        lease(&mut worker) == 200 && lease(&mut producer) == 403
    });
    let lease = |api: &mut Api, queue: &str| {
        let path = format!("/v1/queues/{queue}/lease");
        api.call("POST", &path, &json!({"wait": "0s"})).status
    };
    assert_eq!(lease(&mut worker, "secrets"), 403);
    assert_eq!(
        worker.call("PUT", "/v1/queues/emails", &Value::Null).status,
        403
    );
    let batch = json!({"messages": [{"text": "y"}]});
    let path = "/v1/queues/emails/messages/batch";
    assert_eq!(producer.call("POST", path, &batch).status, 200);
    assert_eq!(worker.call("POST", path, &batch).status, 403);
    // A receipt of another queue opens nothing.
    let secret = api.lease_one("secrets", "1m");
    assert_eq!(worker.settle_one("emails", &secret, "ack"), "invalid");
}
