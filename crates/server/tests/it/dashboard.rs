//! The dashboard: sign-in and its limits, and its pages in a real browser.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use towpath_testkit::servers::made;

use crate::client::{Answer, Client};
use crate::process::{World, able, wait_until};

/// A request of a browser to the admin listener.
fn ask(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut all = vec![("content-type", "application/json")];
    all.extend(headers);
    let mut client = Client::new(world.admin);
    client.send(method, path, &all, body.as_bytes()).unwrap()
}

fn origin(world: &World) -> String {
    format!("http://{}", world.admin)
}

/// The code of a new link.
fn code(world: &World) -> String {
    let link = world.ok(&["dashboard", "--print"]);
    let (base, code) = link.trim().split_once("/#login=").unwrap();
    assert_eq!(base, origin(world));
    code.to_owned()
}

/// Signs in with a credential: the cookie.
fn cookie(world: &World, credential: &Value) -> String {
    let origin = origin(world);
    let answer = ask(
        world,
        "POST",
        "/v1/session",
        &[("origin", &origin)],
        &credential.to_string(),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.contains("; HttpOnly; SameSite=Strict"), "{cookie}");
    cookie.split(';').next().unwrap().to_owned()
}

#[test]
fn a_cookie_serves_pages_of_this_listener_only() {
    let world = World::new();
    let running = world.up();
    let code = code(&world);
    let cookie = cookie(&world, &serde_json::json!({ "code": code }));
    let own = origin(&world);
    let status = |method: &str, headers: &[(&str, &str)]| {
        let mut all = vec![("cookie", &*cookie)];
        all.extend(headers);
        let path = match method {
            "GET" => "/v1/queues",
            _ => "/v1/queues/messages/pause",
        };
        ask(&world, method, path, &all, "").status
    };
    for (headers, reads, changes) in [
        (&[][..], 200, 401),
        (&[("origin", &*own)], 200, 200),
        (
            &[("origin", &own), ("sec-fetch-site", "same-origin")],
            200,
            200,
        ),
        (&[("sec-fetch-site", "none")], 200, 401),
        (&[("sec-fetch-site", "same-site")], 401, 401),
        (&[("sec-fetch-site", "cross-site")], 401, 401),
        (&[("origin", "http://evil.example")], 403, 403),
        (&[("origin", "null")], 403, 403),
        (&[("origin", "http://localhost:3000")], 403, 403),
        (
            &[("origin", &own), ("sec-fetch-site", "cross-site")],
            403,
            403,
        ),
        // A page has no business with a key.
        (&[("origin", &own), ("authorization", "Bearer x")], 403, 403),
    ] {
        assert_eq!(status("GET", headers), reads, "GET {headers:?}");
        assert_eq!(status("POST", headers), changes, "POST {headers:?}");
    }
    // It survives a restart, and ends with the token.
    drop(running);
    let running = world.up();
    assert_eq!(status("GET", &[]), 200);
    drop(running);
    std::fs::remove_file(world.data().join("admin.token")).unwrap();
    let _running = world.up();
    assert_eq!(status("GET", &[]), 401);
}

#[test]
fn a_browser_has_the_scopes_of_its_key_until_that_is_revoked() {
    let world = World::new();
    let _running = world.up();
    let key = viewer(&world);
    let cookie = cookie(&world, &serde_json::json!({ "key": key }));
    let own = origin(&world);
    let headers = [("cookie", &*cookie), ("origin", &own)];
    let status = |method: &str, path: &str| ask(&world, method, path, &headers, "").status;
    assert_eq!(status("GET", "/v1/queues"), 200);
    assert_eq!(status("POST", "/v1/queues/messages/pause"), 403);
    assert_eq!(status("GET", "/v1/streams"), 403);
    let session = ask(&world, "GET", "/v1/session", &headers, "").json();
    assert_eq!(session["name"], "viewer");
    let id = session["actor"].as_str().unwrap().replace("key:", "");
    world.ok(&["key", "revoke", &id]);
    wait_until("the revocation", Duration::from_secs(10), || {
        status("GET", "/v1/queues") == 401
    });
}

#[test]
fn wrong_credentials_are_slow_few_and_recorded() {
    let world = World::new();
    let _running = world.up();
    let own = origin(&world);
    let try_it = || {
        let began = std::time::Instant::now();
        let body = r#"{"key":"guess"}"#;
        let answer = ask(&world, "POST", "/v1/session", &[("origin", &own)], body);
        (answer.status, began.elapsed())
    };
    let (status, took) = try_it();
    assert_eq!(status, 401);
    assert!(took >= Duration::from_secs(1), "{took:?}");
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..9).map(|_| scope.spawn(try_it)).collect();
        for other in others {
            assert_eq!(other.join().unwrap().0, 401);
        }
    });
    assert_eq!(try_it().0, 429);
    wait_until("the record", Duration::from_secs(10), || {
        world.ok(&["audit"]).contains("/v1/session")
    });
}

/// A key that may look at everything of queues and health.
fn viewer(world: &World) -> String {
    let scopes = ["--scope", "queue:*:read", "--scope", "metrics:read"];
    let made = world.ok(&[&["key", "new", "viewer"], &scopes[..]].concat());
    let key = made.split_whitespace().find(|word| word.starts_with("tp_"));
    let key = key.unwrap().to_owned();
    let bearer = format!("Bearer {key}");
    wait_until("the key to be known", Duration::from_secs(10), || {
        ask(
            world,
            "GET",
            "/v1/queues",
            &[("authorization", &bearer)],
            "",
        )
        .status
            == 200
    });
    key
}

#[test]
fn browsers_get_the_page_and_programs_the_list_of_routes() {
    let world = World::new();
    let _running = world.up();
    let accept = "text/html,application/xhtml+xml,*/*;q=0.8";
    let page = ask(&world, "GET", "/", &[("accept", accept)], "");
    assert!(page.text().contains("<title>Towpath</title>"));
    let policy = &page.headers["content-security-policy"];
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'"),
        "{policy}"
    );
    let list = ask(&world, "GET", "/", &[("accept", "*/*")], "");
    assert!(list.text().contains("/v1/queues"));
    let tag = page.headers["etag"].clone();
    let again = [("accept", accept), ("if-none-match", &*tag)];
    assert_eq!(ask(&world, "GET", "/", &again, "").status, 304);
    for missing in ["/ui/nothing.js", "/ui/index.html", "/ui/..%2fapp.js"] {
        assert_eq!(
            ask(&world, "GET", missing, &[], "").status,
            404,
            "{missing}"
        );
    }
}

#[test]
fn a_browser_shows_and_repairs_what_happens() {
    let modules = made("browser");
    let has = |path: &Path| path.exists();
    let can = has(Path::new("/usr/bin/chromium"))
        && has(&modules.join("node_modules/axe-core"))
        && Command::new("node").arg("--version").output().is_ok();
    if !able("chromium", can) {
        return;
    }
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "command");
    let program =
        r#"["sh", "-c", "test -e fixed || { echo customer_id is missing >&2; exit 65; }"]"#;
    world.set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", program);
    let _running = world.up();
    for number in 0..12 {
        world.ok(&["send", "messages", &format!("{{\"order\":{number}}}")]);
    }
    world.ok(&["send", "waiting", "first"]);
    world.ok(&["fleet", "config", "publish", "url=https://example.com/"]);
    wait_until("dead letters", Duration::from_secs(30), || {
        world.json(&["queue", "show", "messages"])["dead"] == 12
    });
    wait_until("the problem", Duration::from_secs(30), || {
        world
            .json_of(&["status"])
            .to_string()
            .contains("dead_letters")
    });
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/dashboard/browser.mjs");
    let output = Command::new("node")
        .arg(script)
        .env("BASE", origin(&world))
        .env("LINK", world.ok(&["dashboard", "--print"]).trim())
        .env("VIEWER", viewer(&world))
        .env("FIXED", world.folder.join("fixed"))
        .env("PLAYWRIGHT", &modules)
        .env("SHOTS", std::env::var("TOWPATH_SHOTS").unwrap_or_default())
        .output()
        .unwrap();
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    eprintln!("{}", shown(&output.stdout));
    assert!(output.status.success(), "{}", shown(&output.stderr));
}
