//! The differences from the reference systems' answers are those of `docs/reference/differences.md`, and no others:
//! status, media type, and the name and JSON type of each field.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::client::{Answer, Client};
use crate::fleet::{KEY, world};
use crate::process::wait_until;
use crate::web::{Reply, serve};

/// Requests and the answers of the reference systems.
const CONTRACT: &str = include_str!("differences/contract.txt");

/// A request as a client of a reference system sends it, and the answer that it expects.
struct Request {
    system: &'static str,
    /// As the page calls it.
    name: &'static str,
    listener: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: &'static str,
    status: &'static str,
    media_type: &'static str,
    /// Types by path; `None` when they are not compared.
    fields: Option<BTreeMap<&'static str, &'static str>>,
}

impl Request {
    fn read(line: &'static str) -> Self {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [
            system,
            name,
            listener,
            request,
            headers,
            body,
            status,
            media_type,
            fields,
        ] = *cells
        else {
            panic!("{line}");
        };
        let (method, path) = request.split_once(' ').unwrap();
        let headers = match headers {
            "" => Vec::new(),
            "json" => vec![("content-type", "application/json")],
            "text" => vec![("content-type", "text/plain")],
            other => vec![other.split_once(": ").unwrap()],
        };
        let fields = (fields != "-").then(|| {
            let pairs = fields.split_whitespace();
            pairs.map(|pair| pair.split_once(':').unwrap()).collect()
        });
        Self {
            system,
            name,
            listener,
            method,
            path,
            headers,
            body,
            status,
            media_type,
            fields,
        }
    }
}

/// The requests of the contract, in their order.
fn requests() -> impl Iterator<Item = Request> {
    let lines = CONTRACT.lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(Request::read)
}

/// Replaces placeholders, to bytes because some are not text.
fn fill(text: &str, known: &BTreeMap<&str, Vec<u8>>) -> Vec<u8> {
    let mut filled = text.as_bytes().to_vec();
    for (name, value) in known {
        let mark = format!("{{{name}}}");
        while let Some(at) = find(&filled, mark.as_bytes()) {
            filled.splice(at..at + mark.len(), value.iter().copied());
        }
    }
    filled
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// The types of a JSON value by path; a list has the types of its items.
fn types(path: &str, value: &Value, found: &mut BTreeMap<String, &'static str>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(text) if text.parse::<jiff::Timestamp>().is_ok() => "time",
        Value::String(_) => "text",
        Value::Array(items) => {
            let path = format!("{path}[]");
            items.iter().for_each(|item| types(&path, item, found));
            return;
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = match path {
                    "" => name.clone(),
                    _ => format!("{path}.{name}"),
                };
                types(&path, value, found);
            }
            return;
        }
    };
    found.insert(path.to_owned(), kind);
}

/// Whether a client that expects one type can read the other.
fn readable(expected: &str, found: &str) -> bool {
    expected == found || matches!((expected, found), ("number", "integer") | ("text", "time"))
}

/// The part of a path that no expected field has: an additional object counts as one field.
fn additional<'a>(path: &'a str, expected: &BTreeMap<&str, &str>) -> &'a str {
    let ends = path.match_indices('.').map(|(at, _)| at);
    ends.map(|end| &path[..end])
        .find(|part| {
            let below = format!("{part}.");
            !expected.keys().any(|name| name.starts_with(&below))
        })
        .unwrap_or(path)
}

/// The rows of the page that an answer makes.
fn compare(request: &Request, answer: &Answer) -> Vec<String> {
    let mut rows = Vec::new();
    let mut row = |what: &str, reference: &str, ours: &str| {
        let (system, name) = (request.system, request.name);
        rows.push(format!(
            "| {system} | {name}{what} | {reference} | {ours} |"
        ));
    };
    let status = answer.status.to_string();
    if status != request.status {
        row("", request.status, &status);
    }
    let success = |status: &str| status.starts_with('2');
    if status != request.status && !(success(&status) && success(request.status)) {
        // An answer of another kind has other fields.
        return rows;
    }
    let media_type = answer.headers.get("content-type");
    let media_type = media_type.map_or("none", |text| text.split(';').next().unwrap());
    if request.media_type != "-" && request.media_type != media_type {
        row(": media type", request.media_type, media_type);
    }
    let Some(expected) = &request.fields else {
        return rows;
    };
    let mut found = BTreeMap::new();
    match serde_json::from_slice(&answer.body) {
        Ok(body) => types("", &body, &mut found),
        Err(error) => row(": body", "JSON", &error.to_string()),
    }
    for (path, kind) in expected {
        let ours = found.remove(*path).unwrap_or("none");
        if !readable(kind, ours) {
            row(&format!(": `{path}`"), kind, ours);
        }
    }
    let more: BTreeSet<String> = found
        .keys()
        .map(|path| format!("`{}`", additional(path, expected)))
        .collect();
    if !more.is_empty() {
        let names: Vec<String> = more.into_iter().collect();
        row(": more fields", "none", &names.join(" "));
    }
    rows
}

/// The rows of the page: system, request, reference, ours; the last cell is the reason.
fn documented() -> BTreeSet<String> {
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/differences.md"
    );
    let page = std::fs::read_to_string(page).unwrap();
    let lines = page.lines().filter(|line| line.starts_with("| 00"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
            assert!(cells.len() == 5 && cells[4].trim().len() > 10, "{line}");
            format!("|{} |", cells[..4].join(" | "))
        })
        .collect()
}

#[test]
fn every_difference_is_documented_and_every_documented_one_is_there() {
    let site = serve(|_| Reply::text(200, "done"));
    let world = world();
    let roles = "ingest.api,orders.gateway,orders.processor,orders.notifier,orders.dashboard,accounts.api,\
                 fleet.controller,fleet.worker";
    let running = world.spawn(&["run", roles]);
    let mut other = crate::process::World::new();
    other.set("INPUT_PATH", other.folder.join("input.txt").display());
    let lines = other.spawn(&["run", "lines.reader,lines.writer"]);
    running.wait_ready(&world);
    lines.wait_ready(&other);
    for (key, value) in [("inventory:s", "100"), ("inventory:bad", "x")] {
        world.ok(&["kv", "set", key, value]);
    }
    let mut known = BTreeMap::from([
        ("long", vec![b'i'; 257]),
        ("large", vec![b'x'; (1 << 20) + 1]),
        ("bad", vec![0xff, 0xfe]),
        ("key", KEY.into()),
        ("site", format!("http://{site}/").into()),
    ]);
    let address = |listener: &str| -> SocketAddr {
        match listener {
            "api" => world.http,
            "dashboard" => world.dashboard,
            "lines" => other.http,
            "controller" | "controller-without-key" => world.controller,
            "worker" => world.hits,
            other => panic!("{other}"),
        }
    };
    let mut found = BTreeSet::new();
    for request in requests() {
        let mut client = Client::new(address(request.listener));
        if request.path.contains("order_id=") {
            wait_until("the notification", Duration::from_secs(30), || {
                let answer = client.get(request.path);
                answer.text().contains("notification_status")
            });
        }
        let path = String::from_utf8(fill(request.path, &known)).unwrap();
        let headers: Vec<(&str, String)> = request
            .headers
            .iter()
            .map(|(name, value)| (*name, String::from_utf8(fill(value, &known)).unwrap()))
            .chain((request.listener == "controller").then(|| ("x-api-key", KEY.to_owned())))
            .collect();
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let answer = client
            .send(request.method, &path, &headers, &fill(request.body, &known))
            .unwrap_or_else(|error| panic!("{}: {error}", request.name));
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if let Some(id) = body["data"]["task_id"].as_str() {
            known.insert("task", id.into());
        } else if let Some(id) = body["id"].as_str() {
            known.insert("user", id.into());
        }
        found.extend(compare(&request, &answer));
    }
    let documented = documented();
    let lacking: Vec<&String> = found.difference(&documented).collect();
    let stale: Vec<&String> = documented.difference(&found).collect();
    assert!(
        lacking.is_empty() && stale.is_empty(),
        "not documented: {lacking:#?}\ndocumented and not found: {stale:#?}"
    );
}

/// Whether a test of this path exists: `module::name`, or a module with `::` at its end.
fn exists(path: &str) -> bool {
    let folder = |tests: &str| format!("{}/{tests}", env!("CARGO_MANIFEST_DIR"));
    let (module, name) = path.rsplit_once("::").unwrap();
    [folder("tests/it"), folder("../backends/tests")]
        .iter()
        .map(|tests| format!("{tests}/{}.rs", module.replace("::", "/")))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .any(|text| name.is_empty() || text.contains(&format!("fn {name}(")))
}

#[test]
fn each_step_of_the_replacing_guides_names_tests_that_exist() {
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/guides/replacing.md"
    );
    let page = std::fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("| guide | step | test |").unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 12, "{rows:?}");
    for row in &rows[1..] {
        let tests = row.rsplit('|').nth(1).unwrap();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for path in named {
            assert!(exists(path), "{path}");
        }
    }
}
