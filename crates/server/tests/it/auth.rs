//! API keys: open routes in each mode of `server.auth`, and the life of a key.

use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::process::{World, wait_until};
use crate::web::{Reply, serve};

/// A running process uses a changed key file within this time.
const NOTICED: Duration = Duration::from_secs(5);

/// A client behind a proxy of this machine, which is not a program of this machine.
const ELSEWHERE: (&str, &str) = ("x-forwarded-for", "192.0.2.7");

fn status(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    let answer = world
        .client()
        .send(method, path, headers, body.as_bytes())
        .unwrap();
    answer.status
}

/// A new key: its id and its text.
fn new_key(world: &World, scope: &str) -> (String, String) {
    let key = world.json(&["key", "new", "test", "--scope", scope]);
    let text = |field: &str| key[field].as_str().unwrap().to_owned();
    (text("id"), text("key"))
}

#[test]
fn keys_are_used_rotated_and_revoked_without_a_restart() {
    let mut world = World::new();
    world.set("TOWPATH_SERVER__AUTH", "on");
    let running = world.up();
    let enqueue = |key: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        status(&world, "POST", "/enqueue", &headers, "hello")
    };
    let missing = world.client().post("/enqueue", &[], b"hello");
    assert_eq!(missing.status, 401);
    assert!(
        missing.text().contains("`ingest:write`"),
        "{}",
        missing.text()
    );
    assert_eq!(missing.headers["www-authenticate"], "Bearer");
    assert_eq!(status(&world, "GET", "/healthz", &[], ""), 200);

    let (id, first) = new_key(&world, "ingest:write");
    wait_until("the key to be known", NOTICED, || enqueue(&first) == 200);
    let other = [("x-api-key", first.as_str())];
    assert_eq!(status(&world, "POST", "/enqueue", &other, "hello"), 200);
    assert_eq!(status(&world, "GET", "/api/users", &other, ""), 403);

    let rotated = world.json(&["key", "rotate", &id, "--grace", "1h"]);
    let second = rotated["key"].as_str().unwrap();
    wait_until("the new secret to be known", NOTICED, || {
        enqueue(second) == 200
    });
    assert_eq!(enqueue(&first), 200);
    let rotated = world.json(&["key", "rotate", &id, "--grace", "0s"]);
    let third = rotated["key"].as_str().unwrap();
    wait_until("the third secret to be known", NOTICED, || {
        enqueue(third) == 200
    });
    assert_eq!([enqueue(&first), enqueue(second)], [401; 2]);

    let listed = world.ok(&["key", "ls"]);
    assert!(
        listed.contains(&id) && listed.contains("ingest:write"),
        "{listed}"
    );
    world.ok(&["key", "revoke", &id]);
    wait_until("the key to be refused", NOTICED, || enqueue(third) == 401);

    world.ok(&["kv", "set", "greeting", "hello"]);
    let records = || world.json(&["audit"]).as_array().unwrap().clone();
    let find = |event: &str, field: &str, value: &str| {
        let is_it = |record: &&serde_json::Value| {
            record["event"] == event && record[field].as_str() == Some(value)
        };
        records().iter().find(is_it).cloned()
    };
    for (event, field, value) in [
        ("change", "action", "PUT /v1/kv/{key}"),
        ("authentication failed", "reason", "no credential"),
        ("authentication failed", "reason", "unknown credential"),
    ] {
        wait_until(value, NOTICED, || find(event, field, value).is_some());
    }
    let change = find("change", "action", "PUT /v1/kv/{key}").unwrap();
    assert_eq!(
        (&change["actor"], &change["object"], &change["status"]),
        (&"token".into(), &"/v1/kv/greeting".into(), &200.into()),
        "{change}"
    );
    assert!(change["request_id"].as_str().is_some(), "{change}");
    let text = serde_json::to_string(&records()).unwrap();
    assert!(
        text.contains("key file changed") && !text.contains("hello"),
        "{text}"
    );
    for secret in [&first, second, third] {
        assert!(!text.contains(secret.rsplit_once('_').unwrap().1), "{text}");
    }
    let table = world.ok(&["audit", "--max", "1"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    let (_, log, _) = running.stop();
    let change = log.lines().find(|line| line.contains("PUT /v1/kv/{key}"));
    let change = change.unwrap();
    assert!(
        change.contains("audit") && change.contains("token"),
        "{change}"
    );
    assert!(!change.contains("hello"), "{change}");
    assert!(
        log.contains("authentication failed") && log.contains("key file changed"),
        "{log}"
    );
    for secret in [&first, second, third] {
        assert!(!log.contains(secret.rsplit_once('_').unwrap().1), "{log}");
    }
}

#[test]
fn own_routes_need_a_key_from_elsewhere_and_contracts_stay_open() {
    let world = World::new();
    let _running = world.up();
    let (_, key) = new_key(&world, "inventory:write");
    let stock = |headers: &[(&str, &str)]| {
        let body = r#"{"quantity":5}"#;
        status(&world, "PUT", "/inventory/case", headers, body)
    };
    assert_eq!(stock(&[]), 200);
    assert_eq!(stock(&[ELSEWHERE]), 401);
    wait_until("the key to be known", NOTICED, || {
        stock(&[ELSEWHERE, ("x-api-key", &key)]) == 200
    });
    assert_eq!(stock(&[ELSEWHERE, ("x-api-key", &format!("{key}x"))]), 401);
    assert_eq!(
        status(&world, "POST", "/enqueue", &[ELSEWHERE], "hello"),
        200
    );
    // The header of a client that has a key of another system.
    let foreign = [ELSEWHERE, ("x-api-key", "another")];
    assert_eq!(status(&world, "POST", "/enqueue", &foreign, "hello"), 200);
}

#[test]
fn listeners_of_the_fleet_accept_keys_with_their_scopes() {
    let world = World::new();
    let _running = world.up();
    let keys = [
        "fleet:read",
        "fleet:publish",
        "worker:read",
        "tasks:read",
        "ingest:write",
    ]
    .map(|scope| (scope, new_key(&world, scope).1));
    let ask = |address, method: &str, path: &str, key: &str, body: &str| {
        let headers = [ELSEWHERE, ("x-api-key", key)];
        let mut client = crate::client::Client::new(address);
        let answer = client.send(method, path, &headers, body.as_bytes());
        answer.unwrap().status
    };
    let config = r#"{"data":{"url":"http://example.com/"}}"#;
    // The key that was made last.
    wait_until("the keys to be known", NOTICED, || {
        ask(world.controller, "GET", "/agents", &keys[4].1, "") == 403
    });
    for (scope, key) in &keys {
        let statuses = [
            ask(world.controller, "GET", "/agents", key, ""),
            ask(world.controller, "POST", "/config", key, config),
            ask(world.hits, "GET", "/config", key, ""),
            ask(world.hits, "GET", "/hits", key, ""),
        ];
        let expected = match *scope {
            "fleet:read" => [200, 403, 403, 403],
            "fleet:publish" => [403, 200, 403, 403],
            "worker:read" => [403, 403, 200, 403],
            "tasks:read" => [403, 403, 403, 200],
            _ => [403; 4],
        };
        // The agent may not have handed the configuration on yet.
        let statuses = statuses.map(|status| {
            if [201, 404].contains(&status) {
                200
            } else {
                status
            }
        });
        assert_eq!(statuses, expected, "{scope}");
    }
    let author = world.json(&["fleet", "config", "history"]);
    assert!(author.to_string().contains("key:"), "{author}");
    let wrong = ask(world.controller, "GET", "/agents", "tp_wrong_key", "");
    assert!([401, 403].contains(&wrong), "{wrong}");
}

#[test]
fn tokens_of_an_identity_provider_are_accepted() {
    let pair = Ed25519KeyPair::generate().unwrap();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwks = serde_json::json!({ "keys": [{
        "kty": "OKP", "crv": "Ed25519", "kid": "1", "x": text(pair.public_key().as_ref()),
    }] });
    let provider = serve(move |_| Reply::text(200, &jwks.to_string()));
    let token = |audience: &str, scope: &str, seconds: i64| {
        let claims = serde_json::json!({
            "iss": "https://id.example/", "aud": audience, "sub": "shop", "scope": scope,
            "exp": jiff::Timestamp::now().as_second() + seconds,
        });
        let header = text(br#"{"alg":"EdDSA","kid":"1"}"#);
        let signed = format!("{header}.{}", text(claims.to_string().as_bytes()));
        let signature = text(pair.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    };
    let mut world = World::new();
    world
        .set("TOWPATH_SERVER__AUTH", "on")
        .set(
            "TOWPATH_SERVER__JWT__JWKS",
            format!("http://{provider}/jwks"),
        )
        .set("TOWPATH_SERVER__JWT__ISSUER", "https://id.example/")
        .set("TOWPATH_SERVER__JWT__AUDIENCE", "towpath");
    let running = world.up();
    let enqueue = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        status(&world, "POST", "/enqueue", &headers, "hello")
    };
    let valid = token("towpath", "openid ingest:write", 60);
    wait_until("the provider's keys", NOTICED, || enqueue(&valid) == 200);
    assert_eq!(enqueue(&token("towpath", "openid", 60)), 403);
    assert_eq!(enqueue(&token("towpath", "ingest:write", -60)), 401);
    assert_eq!(enqueue(&token("other", "ingest:write", 60)), 401);
    assert_eq!(enqueue(&valid.replace('.', "x.")), 401);
    let admin = token("towpath", "admin", 60);
    world.ok(&["kv", "set", "greeting", "hello", "--token", &admin]);
    let (_, log, _) = running.stop();
    assert!(log.contains("jwt:shop") && !log.contains(&admin), "{log}");
    let refused = world.run(&[
        "config",
        "check",
        "--set",
        "server.jwt.jwks=http://id.example/",
    ]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("plain HTTP"),
        "{refused:?}"
    );
}

#[test]
fn admin_keys_are_limited_to_their_queues() {
    let world = World::new();
    let _running = world.up();
    world.ok(&["send", "mail", "hello"]);
    let (_, key) = new_key(&world, "queue:mail:read");
    let admin = |method: &str, path: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        let answer = world.admin_client().send(method, path, &headers, b"");
        answer.unwrap().status
    };
    wait_until("the key to be known", NOTICED, || {
        admin("GET", "/v1/queues/mail") == 200
    });
    assert_eq!(admin("GET", "/v1/queues/messages"), 403);
    assert_eq!(admin("GET", "/v1/queues"), 403);
    assert_eq!(admin("POST", "/v1/queues/mail/purge"), 403);
    let refused = world.run(&["--token", &key, "queue", "purge", "mail", "--yes"]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("queue:NAME:admin"), "{error}");
}

#[test]
fn commands_without_a_process_are_audited() {
    let world = World::new();
    std::fs::create_dir(world.data()).unwrap();
    world.ok(&["migrate", "up"]);
    world.ok(&["migrate", "down", "--all", "--yes"]);
    let (id, key) = new_key(&world, "orders:write");
    let running = world.up();
    let records = || world.json(&["audit"]).as_array().unwrap().clone();
    let actions = || {
        let actions = records().into_iter().map(|it| it["action"].clone());
        actions
            .filter_map(|it| it.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let expected = ["migrate up", "migrate down", "key new"];
    wait_until("the records of before", NOTICED, || {
        expected
            .iter()
            .all(|it| actions().iter().any(|action| action == it))
    });
    world.ok(&["key", "revoke", &id]);
    wait_until("the record of a revoked key", NOTICED, || {
        actions().iter().any(|action| action == "key revoke")
    });
    let made = records()
        .into_iter()
        .find(|it| it["action"] == "key new")
        .unwrap();
    assert_eq!(
        (&made["object"], &made["parameters"]),
        (&id.as_str().into(), &"orders:write".into())
    );
    assert!(
        made["actor"].as_str().unwrap().starts_with("local:"),
        "{made}"
    );
    let text = serde_json::to_string(&records()).unwrap();
    assert!(!text.contains(key.rsplit_once('_').unwrap().1), "{text}");
    let count = records()
        .iter()
        .filter(|it| it["action"] == "key new")
        .count();
    assert_eq!(count, 1, "each once");
    drop(running);
}
