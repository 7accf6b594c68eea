//! Descriptions of the listeners' routes: OpenAPI documents, the page at `/`, pages of other origins, slashes at the end.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use towpath_testkit::servers::made;

use crate::client::{Answer, Client};
use crate::deploy::deploy;
use crate::process::{World, able};

/// A page's request.
const PAGE: (&str, &str) = ("origin", "https://shop.example");

#[test]
fn the_documents_are_valid() {
    let validator = made("openapi/bin/openapi-spec-validator");
    if !able("openapi-spec-validator", validator.exists()) {
        return;
    }
    let folder = deploy().join("../docs/reference/openapi");
    let validate = |file: &Path| Command::new(&validator).arg(file).output().unwrap();
    let mut count = 0;
    for file in folder.read_dir().unwrap() {
        let file = file.unwrap().path();
        let output = validate(&file);
        assert!(output.status.success(), "{}: {output:?}", file.display());
        count += 1;
    }
    assert_eq!(count, 6);
    let world = World::new();
    let broken = world.folder.join("broken.json");
    std::fs::write(&broken, r#"{"openapi": "3.1.0", "paths": {}}"#).unwrap();
    assert!(!validate(&broken).status.success());
}

/// A path with something for each of its parameters, and the parameters that must be there.
fn filled(path: &str, operation: &Value) -> String {
    let mut path = path.to_owned();
    let mut query = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap();
        let value = match parameter["schema"]["type"].as_str() {
            Some("integer" | "number") => "1",
            _ => "some",
        };
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{name}}}"), value),
            Some("query") if parameter["required"] == true => {
                query.push(format!("{name}={value}"));
            }
            _ => {}
        }
    }
    if query.is_empty() {
        return path;
    }
    format!("{path}?{}", query.join("&"))
}

#[test]
fn every_documented_route_answers_as_documented() {
    let mut world = World::new();
    world.set("API_KEY", "a-key-of-this-test");
    let _running = world.up();
    let key = ("x-api-key", "a-key-of-this-test");
    let bearer = world.bearer();
    let mut asked = BTreeSet::new();
    for (listener, address) in [
        ("public", world.http),
        ("dashboard", world.dashboard),
        ("controller", world.controller),
        ("worker", world.hits),
        ("admin", world.admin),
    ] {
        let mut client = Client::new(address);
        let document = client.get("/openapi.json").json();
        let committed = deploy().join(format!("../docs/reference/openapi/{listener}.json"));
        let committed = std::fs::read(committed).unwrap();
        let committed: Value = serde_json::from_slice(&committed).unwrap();
        assert_eq!(document, committed, "{listener}");
        let page = client.get("/").text();
        for (path, item) in document["paths"].as_object().unwrap() {
            assert!(page.contains(path), "{listener}: {path}: {page}");
            for (method, operation) in item.as_object().unwrap() {
                let target = filled(path, operation);
                let headers = match listener {
                    "admin" => vec![("authorization", bearer.as_str())],
                    "public" => Vec::new(),
                    _ => vec![key],
                };
                let body: &[u8] = match operation["requestBody"].is_null() {
                    true => b"",
                    false if path.ends_with("/lease") => br#"{"wait":"0s"}"#,
                    false => b"{}",
                };
                let mut headers = headers;
                headers.push(("content-type", "application/json"));
                let method = method.to_uppercase();
                let answer = client.send(&method, &target, &headers, body).unwrap();
                let known = &operation["responses"][answer.status.to_string()];
                let text = String::from_utf8_lossy(&answer.body);
                let said = format!("{listener}: {method} {target}: {} {text}", answer.status);
                assert!(known.is_object(), "{said}");
                assert!(
                    answer.status != 404 || !text.contains("\"not found\""),
                    "{said}"
                );
                assert_ne!(text, "not found\n", "{said}");
                let kind = answer
                    .headers
                    .get("content-type")
                    .map_or("", String::as_str);
                let kind = kind.split(';').next().unwrap_or_default();
                let content = known["content"].as_object();
                assert!(
                    content.is_none() || content.is_some_and(|known| known.contains_key(kind)),
                    "{said}: {kind}"
                );
                asked.insert((listener, method, path.clone()));
            }
        }
    }
    assert!(asked.len() > 80, "{}", asked.len());
}

#[test]
fn a_slash_at_the_end_is_the_same_route() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    for path in ["/enqueue/", "/enqueue/?x=1"] {
        let answer = client.post(path, &[("content-type", "text/plain")], b"hello");
        let same = client.post(
            &path.replacen("e/", "e", 1),
            &[("content-type", "text/plain")],
            b"hello",
        );
        assert_eq!(answer.status, same.status, "{}", answer.text());
    }
    let user = br#"{"email": "a@example.com", "name": "A"}"#;
    let created = client.post("/api/users/", &[], user);
    assert_eq!(created.status, 201, "{}", created.text());
    let place = created.headers["location"].clone();
    assert_eq!(client.get(&format!("{place}/")).status, 200);
    assert_eq!(client.get("/enqueue/").status, 405);
    for path in ["//", "/nowhere/", "//enqueue", "/enqueue//"] {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
    assert_eq!(world.admin_client().get("/livez/").status, 200);
}

fn preflight(client: &mut Client, path: &str) -> Answer {
    let headers = [
        PAGE,
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "content-type,idempotency-key",
        ),
    ];
    client.send("OPTIONS", path, &headers, b"").unwrap()
}

const ALLOWED: &str = "access-control-allow-origin";

#[test]
fn pages_of_other_origins_get_the_configured_access() {
    let mut world = World::new();
    let running = world.up();
    let answer = world
        .client()
        .send("GET", "/healthz", &[PAGE], b"")
        .unwrap();
    assert!(!answer.headers.contains_key(ALLOWED), "{answer:?}");
    drop(running);

    world.set("TOWPATH_SERVER__CORS__ORIGINS", PAGE.1);
    let running = world.up();
    for address in [world.http, world.controller, world.hits, world.dashboard] {
        let mut client = Client::new(address);
        let answer = preflight(&mut client, "/enqueue");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.headers[ALLOWED], PAGE.1);
        assert_eq!(answer.headers["access-control-allow-methods"], "POST");
        let headers = &answer.headers["access-control-allow-headers"];
        assert!(headers.contains("idempotency-key"), "{headers}");
        assert_eq!(answer.headers["access-control-max-age"], "600");
        // A page reads refusals too.
        let answer = client.send("GET", "/nowhere", &[PAGE], b"").unwrap();
        assert_eq!(
            (answer.status, answer.headers[ALLOWED].as_str()),
            (404, PAGE.1)
        );
        let other = ("origin", "https://other.example");
        let answer = client.send("GET", "/nowhere", &[other], b"").unwrap();
        assert!(!answer.headers.contains_key(ALLOWED), "{answer:?}");
    }
    let mut client = world.client();
    for (method, path, status) in [("GET", "/enqueue", 405), ("POST", "/enqueue", 400)] {
        let answer = client.send(method, path, &[PAGE], b"").unwrap();
        assert_eq!(
            (answer.status, answer.headers[ALLOWED].as_str()),
            (status, PAGE.1)
        );
    }
    let answer = preflight(&mut world.admin_client(), "/v1/queues");
    assert!(!answer.headers.contains_key(ALLOWED), "{answer:?}");
    drop(running);

    // As the reference system answers.
    world.set("TOWPATH_SERVER__CORS__ORIGINS", "*");
    let _running = world.up();
    let answer = world.client().get("/health");
    assert_eq!(answer.headers[ALLOWED], "*");
}

#[test]
fn refusals_are_never_taken_for_pages() {
    let world = World::new();
    let _running = world.up();
    for address in [
        world.http,
        world.dashboard,
        world.controller,
        world.hits,
        world.admin,
    ] {
        let mut client = Client::new(address);
        let answer = client.get("/%3Cscript%3E");
        assert_eq!(
            answer.headers["x-content-type-options"], "nosniff",
            "{answer:?}"
        );
        let page = client.get("/");
        assert_eq!(page.status, 200);
        assert!(page.text().contains("/openapi.json"), "{}", page.text());
    }
}

#[test]
fn origins_are_written_as_browsers_send_them() {
    let world = World::new();
    for wrong in [
        "https://shop.example/",
        "shop.example",
        "https://shop.example/path",
    ] {
        let set = format!("server.cors.origins={wrong}");
        let output = world.run(&["config", "check", "--set", &set]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("server.cors.origins"),
            "{said}"
        );
    }
}
