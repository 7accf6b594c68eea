//! The differences from the reference systems' answers are those of `docs/reference/differences.md`, and no others.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::client::Client;
use crate::fleet::{KEY, publish, url, wait_version, world};

/// A request as a client of a reference system sends it.
struct Request {
    system: &'static str,
    /// As the page calls it.
    name: &'static str,
    at: SocketAddr,
    method: &'static str,
    path: String,
    media_type: &'static str,
    body: Vec<u8>,
    /// The status of the reference system.
    status: u16,
}

/// Sends them in their order; the rows of the page that the answers make.
fn rows(requests: Vec<Request>) -> BTreeSet<String> {
    let mut differing = BTreeSet::new();
    for one in requests {
        let mut headers = vec![("content-type", one.media_type), ("x-api-key", KEY)];
        headers.retain(|(_, value)| !value.is_empty());
        let mut client = Client::new(one.at);
        let answer = client
            .send(one.method, &one.path, &headers, &one.body)
            .unwrap();
        if answer.status != one.status {
            differing.insert(format!(
                "| {} | {} | {} | {} |",
                one.system, one.name, one.status, answer.status
            ));
        }
    }
    differing
}

/// A request as a row: system, name, listener, method, path, media type, body, and the status of the answer.
type Row = (
    &'static str,
    &'static str,
    SocketAddr,
    &'static str,
    String,
    &'static str,
    Vec<u8>,
    u16,
);

#[test]
fn every_difference_is_documented_and_every_documented_one_is_there() {
    const JSON: &str = "application/json";
    const TEXT: &str = "text/plain";
    let world = world();
    let _running = world.up();
    publish(&world, &url("http://127.0.0.1:9/"));
    wait_version(&world, 1);
    let large = vec![b'x'; (1 << 20) + 1];
    let long = "i".repeat(257);
    let order = |id: &str, qty: &str| format!(r#"{{"id":"{id}","sku":"s","qty":{qty}}}"#);
    let unknown = "00000000-0000-4000-8000-000000000000";
    let (api, board) = (world.http, world.dashboard);
    let (fleet, hits) = (world.controller, world.hits);
    let table: Vec<Row> = vec![
        (
            "000",
            "text",
            api,
            "POST",
            "/enqueue".into(),
            TEXT,
            b"x".to_vec(),
            200,
        ),
        (
            "000",
            "JSON",
            api,
            "POST",
            "/enqueue".into(),
            JSON,
            br#"{"message":"x"}"#.to_vec(),
            200,
        ),
        (
            "000",
            "JSON, names in another case",
            api,
            "POST",
            "/enqueue".into(),
            JSON,
            br#"{"Message":"x"}"#.to_vec(),
            200,
        ),
        (
            "000",
            "JSON, blank message",
            api,
            "POST",
            "/enqueue".into(),
            JSON,
            br#"{"message":" "}"#.to_vec(),
            400,
        ),
        (
            "000",
            "JSON `null`",
            api,
            "POST",
            "/enqueue".into(),
            JSON,
            b"null".to_vec(),
            400,
        ),
        (
            "000",
            "JSON type, a body that is not JSON",
            api,
            "POST",
            "/enqueue".into(),
            JSON,
            b"{".to_vec(),
            200,
        ),
        (
            "000",
            "JSON type, a list",
            api,
            "POST",
            "/enqueue".into(),
            JSON,
            b"[1]".to_vec(),
            200,
        ),
        (
            "000",
            "empty body",
            api,
            "POST",
            "/enqueue".into(),
            TEXT,
            Vec::new(),
            400,
        ),
        (
            "000",
            "body over 1 MiB",
            api,
            "POST",
            "/enqueue".into(),
            TEXT,
            large,
            200,
        ),
        (
            "000",
            "wrong method",
            api,
            "PUT",
            "/enqueue".into(),
            TEXT,
            Vec::new(),
            405,
        ),
        (
            "000",
            "unknown path",
            api,
            "GET",
            "/nothing".into(),
            "",
            Vec::new(),
            404,
        ),
        (
            "000",
            "`HEAD` of health",
            api,
            "HEAD",
            "/healthz".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "001",
            "order",
            api,
            "POST",
            "/orders".into(),
            JSON,
            order("a", "1").into(),
            202,
        ),
        (
            "001",
            "the same order",
            api,
            "POST",
            "/orders".into(),
            JSON,
            order("a", "1").into(),
            409,
        ),
        (
            "001",
            "fractional quantity",
            api,
            "POST",
            "/orders".into(),
            JSON,
            order("b", "1.5").into(),
            400,
        ),
        (
            "001",
            "quantity 0",
            api,
            "POST",
            "/orders".into(),
            JSON,
            order("c", "0").into(),
            400,
        ),
        (
            "001",
            "not JSON",
            api,
            "POST",
            "/orders".into(),
            JSON,
            b"x".to_vec(),
            400,
        ),
        (
            "001",
            "id over 256 characters",
            api,
            "POST",
            "/orders".into(),
            JSON,
            order(&long, "1").into(),
            202,
        ),
        (
            "001",
            "wrong method",
            api,
            "GET",
            "/orders".into(),
            "",
            Vec::new(),
            405,
        ),
        (
            "001",
            "`GET /orders/{id}`",
            api,
            "GET",
            "/orders/a".into(),
            "",
            Vec::new(),
            404,
        ),
        (
            "001",
            "dashboard",
            board,
            "GET",
            "/metrics".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "001",
            "dashboard, wrong method",
            board,
            "POST",
            "/metrics".into(),
            "",
            Vec::new(),
            405,
        ),
        (
            "001",
            "dashboard, `HEAD`",
            board,
            "HEAD",
            "/metrics".into(),
            "",
            Vec::new(),
            405,
        ),
        (
            "003",
            "create user",
            api,
            "POST",
            "/api/users".into(),
            JSON,
            br#"{"email":"a@example.org","name":"A"}"#.to_vec(),
            200,
        ),
        (
            "003",
            "create user, address taken",
            api,
            "POST",
            "/api/users".into(),
            JSON,
            br#"{"email":"a@example.org","name":"A"}"#.to_vec(),
            500,
        ),
        (
            "003",
            "create user, not JSON",
            api,
            "POST",
            "/api/users".into(),
            JSON,
            b"x".to_vec(),
            400,
        ),
        (
            "003",
            "create user, no name",
            api,
            "POST",
            "/api/users".into(),
            JSON,
            br#"{"email":"b@example.org"}"#.to_vec(),
            400,
        ),
        (
            "003",
            "user, invalid id",
            api,
            "GET",
            "/api/users/x".into(),
            "",
            Vec::new(),
            400,
        ),
        (
            "003",
            "user, unknown id",
            api,
            "GET",
            format!("/api/users/{unknown}"),
            "",
            Vec::new(),
            404,
        ),
        (
            "003",
            "bucket, no key",
            api,
            "GET",
            "/api/bucket/check".into(),
            "",
            Vec::new(),
            400,
        ),
        (
            "003",
            "bucket",
            api,
            "GET",
            "/api/bucket/check?key=k".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "003",
            "take",
            api,
            "POST",
            "/api/bucket/consume?key=k".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "003",
            "take, not a number",
            api,
            "POST",
            "/api/bucket/consume?key=k&tokens=x".into(),
            "",
            Vec::new(),
            400,
        ),
        (
            "003",
            "take `NaN`",
            api,
            "POST",
            "/api/bucket/consume?key=k&tokens=NaN".into(),
            "",
            Vec::new(),
            429,
        ),
        (
            "003",
            "take more than the capacity",
            api,
            "POST",
            "/api/bucket/consume?key=k&tokens=1000".into(),
            "",
            Vec::new(),
            429,
        ),
        (
            "003",
            "ten takes",
            api,
            "POST",
            "/api/bucket/bulk-consume?key=k".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "003",
            "reset",
            api,
            "POST",
            "/api/bucket/reset?key=k".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "004",
            "configuration",
            fleet,
            "GET",
            "/config".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "004",
            "version, not a number",
            fleet,
            "GET",
            "/config/x".into(),
            "",
            Vec::new(),
            400,
        ),
        (
            "004",
            "version, unknown",
            fleet,
            "GET",
            "/config/999".into(),
            "",
            Vec::new(),
            404,
        ),
        (
            "004",
            "version, a slash at the end",
            fleet,
            "GET",
            "/config/1/".into(),
            "",
            Vec::new(),
            301,
        ),
        (
            "004",
            "register without a port",
            fleet,
            "POST",
            "/register".into(),
            JSON,
            br#"{"hostname":"h","ip_address":"1.1.1.1"}"#.to_vec(),
            400,
        ),
        (
            "004",
            "worker, configuration",
            hits,
            "GET",
            "/config".into(),
            "",
            Vec::new(),
            200,
        ),
        (
            "004",
            "worker, hit",
            hits,
            "GET",
            "/hit".into(),
            "",
            Vec::new(),
            202,
        ),
        (
            "004",
            "worker, `HEAD` of a hit",
            hits,
            "HEAD",
            "/hit".into(),
            "",
            Vec::new(),
            404,
        ),
        (
            "004",
            "worker, unknown task",
            hits,
            "GET",
            format!("/hit/{unknown}"),
            "",
            Vec::new(),
            200,
        ),
        (
            "004",
            "worker, an older version of the same line",
            hits,
            "POST",
            "/config".into(),
            JSON,
            br#"{"version":1,"data":{"url":"http://127.0.0.1:9/"}}"#.to_vec(),
            200,
        ),
    ];
    let requests = table.into_iter().map(
        |(system, name, at, method, path, media_type, body, status)| Request {
            system,
            name,
            at,
            method,
            path,
            media_type,
            body,
            status,
        },
    );
    let found = rows(requests.collect());
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/differences.md"
    );
    let page = std::fs::read_to_string(page).unwrap();
    // The last cell is the reason.
    let is_row = |line: &&str| line.starts_with("| 00");
    let documented: BTreeSet<String> = page
        .lines()
        .filter(is_row)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
            assert!(cells.len() == 5 && cells[4].trim().len() > 10, "{line}");
            format!("|{} |", cells[..4].join(" | "))
        })
        .collect();
    assert_eq!(found, documented);
}
