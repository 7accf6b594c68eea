//! The life of a message over the routes, the same on every backend.

use super::*;

#[test]
fn a_message_is_leased_extended_retried_and_dead_lettered_on_each_backend() {
    for site in Site::all() {
        let (name, mut api) = (site.name, site.api());
        let settings = json!({"retry": {"attempts": 2, "first": "10ms", "max": "20ms"}});
        api.create("emails", &settings);
        let headers = [
            ("towpath-header-tenant", "acme"),
            ("content-type", "application/json"),
        ];
        let sent = api.send("emails", &headers, r#"{"to": 12345678901234567890}"#);

        let first = api.lease_one("emails", "30s");
        assert_eq!(
            first["payload"], r#"{"to": 12345678901234567890}"#,
            "{name}"
        );
        assert_eq!(first["encoding"], "utf-8", "{name}");
        assert_eq!(first["attempt"], 1, "{name}");
        assert_eq!(first["lease"], "30s", "{name}");
        assert_eq!(first["headers"]["tenant"], "acme", "{name}");
        assert_eq!(first["headers"]["content-type"], "application/json");
        assert_eq!(first["id"], sent["id"], "{name}");
        assert_eq!(api.extend("emails", &first, "1m"), "ok", "{name}");

        // A retry without a delay follows the settings of the queue.
        let retry = json!([{
            "receipt": first["receipt"], "disposition": "retry", "reason": "mail server busy",
        }]);
        assert_eq!(api.settle("emails", &retry)[0]["outcome"], "ok", "{name}");
        let second = api.lease_one("emails", "30s");
        assert_eq!(
            (&second["attempt"], &second["id"]),
            (&json!(2), &first["id"])
        );

        // A repeated settlement changes nothing, and says so.
        assert_eq!(api.settle("emails", &retry)[0]["outcome"], "lease_lost");
        assert_eq!(api.extend("emails", &first, "1m"), "lease_lost", "{name}");

        // Uncharged: the next delivery has the same attempt.
        assert_eq!(api.settle_one("emails", &second, "release"), "ok");
        let again = api.lease_one("emails", "30s");
        assert_eq!(again["attempt"], 2, "{name}");
        let retry = json!([{
            "receipt": again["receipt"], "disposition": "retry", "reason": "still busy",
        }]);
        assert_eq!(api.settle("emails", &retry)[0]["outcome"], "ok", "{name}");

        let mut dead = Vec::new();
        wait_until("the dead letter", Duration::from_secs(20), || {
            dead = api.dead_letters("emails");
            !dead.is_empty()
        });
        assert_eq!(dead[0]["reason"], "still busy", "{name}");
        assert_eq!(dead[0]["attempts"], 2, "{name}");

        // Repaired: back in its queue, attempts from 1.
        let redrive = "/v1/queues/emails/dead-letters/redrive";
        assert_eq!(api.ok("POST", redrive, &json!({"all": true}))["count"], 1);
        let repaired = api.lease_one("emails", "30s");
        assert_eq!(repaired["attempt"], 1, "{name}");
        api.ack("emails", &repaired);

        api.send("emails", &[], "no address");
        let hopeless = api.lease_one("emails", "30s");
        let disposition = json!([{
            "receipt": hopeless["receipt"], "disposition": "dead_letter", "reason": "no address",
        }]);
        assert_eq!(
            api.settle("emails", &disposition)[0]["outcome"],
            "ok",
            "{name}"
        );
        wait_until("the dead letter", Duration::from_secs(20), || {
            dead = api.dead_letters("emails");
            !dead.is_empty()
        });
        assert_eq!(dead[0]["reason"], "no address", "{name}");
    }
}

#[test]
fn an_expired_lease_is_delivered_again_and_its_receipt_is_refused() {
    for site in Site::all() {
        let (name, mut api) = (site.name, site.api());
        api.create("slow", &Value::Null);
        api.send("slow", &[], "work");
        let lost = api.lease_one("slow", "200ms");
        let current = api.lease_one("slow", "1m");
        assert_eq!(
            (&current["id"], &current["attempt"]),
            (&lost["id"], &json!(2))
        );
        assert_eq!(current["interrupted"], true, "{name}");
        let path = "/v1/queues/slow/settle";
        let both = json!({"settlements": [
            {"receipt": lost["receipt"], "disposition": "ack"},
            {"receipt": current["receipt"], "disposition": "ack"},
            {"receipt": "garbage", "disposition": "ack"},
        ]});
        let answer = api.call("POST", path, &both);
        assert_eq!(answer.status, 207, "{name}: {}", answer.text());
        let results = answer.json()["results"].clone();
        let outcomes = [0, 1, 2].map(|at| results[at]["outcome"].clone());
        assert_eq!(outcomes, ["lease_lost", "ok", "invalid"], "{name}");
    }
}

#[test]
fn receipts_of_a_process_that_was_killed_are_refused_or_settle_their_delivery() {
    for mut site in Site::all() {
        let name = site.name;
        let mut api = site.api();
        api.create("jobs", &Value::Null);
        for number in 0..3 {
            api.send("jobs", &[], &number.to_string());
        }
        let mut before = Vec::new();
        wait_until("the messages", Duration::from_secs(20), || {
            before.extend(api.lease("jobs", &json!({"max": 3, "wait": "1s", "lease": "10m"})));
            before.len() == 3
        });
        site.restart();
        let mut api = site.api();
        // The outcome is true either way: `ok` removes the message, `lease_lost` has it delivered again.
        let outcome = api.settle_one("jobs", &before[0], "ack");
        let expected = if outcome == "ok" { 2 } else { 3 };
        assert!(
            ["ok", "lease_lost"].contains(&&*outcome),
            "{name}: {outcome}"
        );
        let mut after = BTreeSet::new();
        wait_until("the other messages", Duration::from_secs(40), || {
            for delivery in api.lease("jobs", &json!({"max": 10, "wait": "1s"})) {
                api.ack("jobs", &delivery);
                after.insert(delivery["payload"].as_str().unwrap().to_owned());
            }
            after.len() == expected
        });
        assert_eq!(api.settle_one("jobs", &before[1], "ack"), "lease_lost");
    }
}

#[test]
fn a_retry_without_a_delay_follows_the_settings_of_its_queue() {
    for site in [Some(Site::embedded()), Site::redis()]
        .into_iter()
        .flatten()
    {
        let mut api = site.api();
        api.create("jobs", &json!({"retry": {"first": "1h", "max": "1h"}}));
        api.send("jobs", &[], "work");
        let delivery = api.lease_one("jobs", "1m");
        assert_eq!(api.settle_one("jobs", &delivery, "retry"), "ok");
        // The default policy has it ready after a second.
        assert!(api.lease("jobs", &json!({"wait": "1500ms"})).is_empty());
        let stats = api.stats("jobs");
        assert_eq!(
            (&stats["delayed"], &stats["retried"]),
            (&json!(1), &json!(1))
        );
    }
}

#[test]
fn a_batch_is_stored_as_it_was_sent() {
    let sites = [Some(Site::embedded()), Site::redis()];
    for site in sites.into_iter().flatten() {
        let mut api = site.api();
        let path = "/v1/queues/mixed/messages/batch";
        let body = r#"{"messages": [
            {"text": "plain", "headers": {"tenant": "acme"}},
            {"json": {"n": 12345678901234567890, "f": 1.10}},
            {"json": null},
            {"base64": "AP8="},
            {"text": "once", "idempotency_key": "k"},
            {"text": "once", "idempotency_key": "k"},
            {"text": "later", "delay": "1h"}
        ]}"#;
        let headers = [
            ("authorization", api.bearer.clone()),
            ("content-type", "application/json".to_owned()),
        ];
        let headers = headers
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let answer = { api.client.send("POST", path, &headers, body.as_bytes()) }.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let results = answer.json()["results"].as_array().unwrap().clone();
        let duplicates: Vec<_> = results.iter().map(|one| one["duplicate"] == true).collect();
        assert_eq!(duplicates, [false, false, false, false, false, true, false]);
        assert_eq!(results[4]["id"], results[5]["id"]);
        let leased = api.lease("mixed", &json!({"max": 100, "wait": "0s"}));
        let payloads: Vec<_> = leased
            .iter()
            .map(|one| one["payload"].as_str().unwrap())
            .collect();
        assert_eq!(
            payloads,
            [
                "plain",
                r#"{"n": 12345678901234567890, "f": 1.10}"#,
                "null",
                "AP8=",
                "once"
            ]
        );
        assert_eq!(leased[3]["encoding"], "base64");
        assert_eq!(leased[1]["headers"]["content-type"], "application/json");
        assert_eq!(leased[0]["headers"]["tenant"], "acme");
        assert_eq!(api.stats("mixed")["delayed"], 1);
    }
}

#[test]
fn settings_survive_a_restart_and_the_configuration_is_not_overwritten() {
    let mut site = Site::embedded();
    let mut api = site.api();
    let path = "/v1/queues/emails";
    let settings = json!({"retry": {"attempts": 3, "first": "2s", "max": "1m"}, "max_depth": 2});
    assert_eq!(api.call("PUT", path, &settings).status, 201);
    assert_eq!(api.call("PUT", path, &settings).status, 200);
    site.restart();
    let mut api = site.api();
    let shown = api.stats("emails")["settings"].clone();
    assert_eq!(shown["retry"], settings["retry"]);
    assert_eq!(
        (&shown["max_depth"], &shown["idempotency_window"]),
        (&json!(2), &json!("24h"))
    );
    for _ in 0..2 {
        api.send("emails", &[], "x");
    }
    let full = api.call("POST", "/v1/queues/emails/messages", &json!(1));
    assert_eq!(full.status, 429, "{}", full.text());
    let answer = api.call("DELETE", path, &Value::Null);
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert_eq!(
        api.ok("DELETE", &format!("{path}?force=true"), &Value::Null)["count"],
        2
    );
    assert_eq!(api.call("GET", path, &Value::Null).status, 404);

    let declared = "[queues.reports]\nmax_depth = 7\nretry.attempts = 4\n";
    std::fs::write(site.world.folder.join("towpath.toml"), declared).unwrap();
    site.restart();
    let mut api = site.api();
    let shown = api.stats("reports")["settings"].clone();
    assert_eq!(
        (&shown["max_depth"], &shown["retry"]["attempts"]),
        (&json!(7), &json!(4))
    );
    for (method, queue, section) in [
        ("PUT", "reports", "[queues.reports]"),
        ("DELETE", "reports", "[queues.reports]"),
        ("PUT", "messages", "[ingest]"),
    ] {
        let answer = api.call(method, &format!("/v1/queues/{queue}"), &Value::Null);
        assert_eq!(answer.status, 409, "{method} {queue}: {}", answer.text());
        assert!(answer.text().contains(section), "{}", answer.text());
    }
}

#[test]
fn mistakes_in_declared_queues_are_reported_with_their_place() {
    let world = World::new();
    let text = "[queues.emails]\nretry.atempts = 3\n\n[queues.messages]\nmax_depth = 1\n\n[queues.\"a b\"]\n\n[queues.late]\nretry.first = \"2h\"\nretry.max = \"1h\"\n";
    std::fs::write(world.folder.join("towpath.toml"), text).unwrap();
    let output = world.run(&["config", "check"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    for expected in [
        "towpath.toml:1",
        "did you mean `attempts`?",
        "`ingest.worker.retry`",
        "white space",
        "longer than `retry.max`",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
