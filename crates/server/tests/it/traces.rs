//! Traces, as a collector sees them.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use serde_json::json;

use crate::client::Client;
use crate::fleet::KEY;
use crate::process::{World, wait_until};
use crate::web::{Reply, Request, serve};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

/// A collector on a port of its own, and its received spans.
struct Collector {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// One call of the collector.
struct Call {
    path: String,
    headers: HashMap<String, String>,
    service: String,
    spans: Vec<Span>,
}

impl Collector {
    /// Answers the first calls with these status codes, and the others with 200.
    fn answering(refusals: &'static [u16]) -> Self {
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let (kept, refused) = (Arc::clone(&calls), Mutex::new(refusals.iter()));
        let address = serve(move |asked: Request| {
            if let Some(status) = refused.lock().unwrap().next() {
                let headers = vec![("retry-after", "0".to_owned())];
                return Reply::Answer(*status, headers, Vec::new());
            }
            assert_eq!(asked.method, "POST");
            assert_eq!(asked.headers["content-type"], "application/x-protobuf");
            let mut body = asked.body.clone();
            if let Some(encoding) = asked.headers.get("content-encoding") {
                assert_eq!(encoding, "gzip");
                body.clear();
                GzDecoder::new(&asked.body[..])
                    .read_to_end(&mut body)
                    .unwrap();
            }
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            for resource in request.resource_spans {
                let attributes = &resource.resource.as_ref().unwrap().attributes;
                let scopes = resource.scope_spans.into_iter();
                kept.lock().unwrap().push(Call {
                    path: asked.path.clone(),
                    headers: asked.headers.clone(),
                    service: text(attributes, "service.name").unwrap_or_default(),
                    spans: scopes.flat_map(|scope| scope.spans).collect(),
                });
            }
            Reply::text(200, "")
        });
        Self { address, calls }
    }

    fn new() -> Self {
        Self::answering(&[])
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of a trace.
    fn trace(&self, id: &str) -> Vec<Span> {
        let calls = self.calls.lock().unwrap();
        let all = calls.iter().flat_map(|call| &call.spans);
        all.filter(|span| hex::encode(&span.trace_id) == id)
            .cloned()
            .collect()
    }

    fn named(&self, name: &str) -> Vec<Span> {
        let calls = self.calls.lock().unwrap();
        let all = calls.iter().flat_map(|call| &call.spans);
        all.filter(|span| span.name == name).cloned().collect()
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

fn traceparent() -> String {
    format!("00-{TRACE}-{CLIENT}-01")
}

/// Follows spans of these names from a parent to the last one, each below the one before.
fn path(spans: &[Span], parent: &str, names: &[&str]) -> Span {
    let (mut parent, mut last) = (parent.to_owned(), None);
    for name in names {
        let found = spans
            .iter()
            .find(|span| span.name == *name && hex::encode(&span.parent_span_id) == parent);
        let found = found.unwrap_or_else(|| {
            let all: Vec<_> = spans
                .iter()
                .map(|span| {
                    (
                        &span.name,
                        hex::encode(&span.span_id),
                        hex::encode(&span.parent_span_id),
                    )
                })
                .collect();
            panic!("no `{name}` below {parent} on the way {names:?}: {all:#?}")
        });
        assert!(found.start_time_unix_nano <= found.end_time_unix_nano);
        parent = hex::encode(&found.span_id);
        last = Some(found.clone());
    }
    last.unwrap()
}

#[test]
fn one_trace_crosses_from_the_post_to_the_file() {
    let collector = Collector::new();
    let mut world = World::new();
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    let running = world.up();
    let mut client = world.client();
    let with = [("traceparent", &*traceparent())];
    assert_eq!(client.post("/enqueue", &with, b"traced").status, 200);
    assert_eq!(client.post("/enqueue", &[], b"untraced").status, 200);
    assert_eq!(client.post("/enqueue", &with, b"").status, 400);
    assert_eq!(client.get("/nothing").status, 404);
    world.wait_drained();
    // The last spans are sent before the process ends.
    assert!(running.stop().0.success());

    let spans = collector.trace(TRACE);
    let way = ["POST /enqueue", "enqueue", "lease", "deliver"];
    let deliver = path(&spans, CLIENT, &way);
    assert_eq!(
        text(&deliver.attributes, "towpath.sink").as_deref(),
        Some("file")
    );
    let lease = path(&spans, CLIENT, &way[..3]);
    let queue = text(&lease.attributes, "messaging.destination.name");
    assert_eq!(queue.as_deref(), Some("messages"));
    let server = path(&spans, CLIENT, &way[..1]);
    assert_eq!(server.kind, SpanKind::Server as i32);
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/enqueue"),
        ("url.path", "/enqueue"),
        ("url.scheme", "http"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
    ] {
        let found = text(&server.attributes, name);
        assert_eq!(found.as_deref(), Some(value), "{name}");
    }
    let served = spans.iter().filter(|span| span.name == "POST /enqueue");
    let codes: Vec<_> = served
        .map(|span| text(&span.attributes, "http.response.status_code").unwrap())
        .collect();
    assert!(codes.contains(&"200".to_owned()) && codes.contains(&"400".to_owned()));
    // A mistake of the client is not the server's error.
    let is_error = |span: &Span| {
        let status = span.status.as_ref();
        status.is_some_and(|status| status.code == StatusCode::Error as i32)
    };
    assert!(!spans.iter().any(is_error), "{spans:?}");
    assert_eq!(collector.named("GET").len(), 1, "a path without a route");
    // Without a client's trace it is one of its own.
    let other = collector
        .named("deliver")
        .into_iter()
        .find(|span| hex::encode(&span.trace_id) != TRACE)
        .unwrap();
    path(&collector.trace(&hex::encode(&other.trace_id)), "", &way);
    let calls = collector.calls.lock().unwrap();
    assert!(calls.iter().all(|call| call.path == "/v1/traces"));
    assert!(calls.iter().all(|call| call.service == "towpath"));
}

#[test]
fn one_trace_crosses_every_app() {
    let collector = Collector::new();
    let received: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let kept = Arc::clone(&received);
    let site = serve(move |asked: Request| {
        let parent = asked.headers.get("traceparent").cloned();
        let what = format!("{} {}", asked.method, asked.path);
        kept.lock()
            .unwrap()
            .push((what, parent.unwrap_or_default()));
        Reply::text(200, "fine")
    });
    let mut world = World::new();
    let input = world.folder.join("input.txt");
    fs::write(&input, "").unwrap();
    world
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
        .set("OTEL_BSP_SCHEDULE_DELAY", "50")
        .set("INPUT_PATH", input.display())
        .set("API_KEY", KEY)
        .set("TOWPATH_FLEET__WORKER__ALLOW", "127.0.0.1")
        .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
        .set(
            "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
            format!("http://{site}/hook"),
        );
    let running = world.up();
    world.ok(&["kv", "set", "inventory:case", "10"]);
    let config = json!({ "version": 1, "data": { "url": format!("http://{site}/hit") } });
    let mut worker = Client::new(world.hits);
    let given = worker.post("/config", &[], config.to_string().as_bytes());
    assert_eq!(given.status, 200);

    // A trace for each app, distinguished by its last digit.
    let trace = |number: u32| format!("{}{number}", &TRACE[..31]);
    let with = |number: u32| format!("00-{}-{CLIENT}-01", trace(number));
    let mut client = world.client();
    let one = with(1);
    client.post("/enqueue", &[("traceparent", &one)], b"hook");
    let wanted = json!({ "callback_url": format!("http://{site}/done") }).to_string();
    let two = with(2);
    worker.post("/hit", &[("traceparent", &two)], wanted.as_bytes());
    let order = br#"{"id":"o1","sku":"case","qty":1}"#;
    let three = with(3);
    let taken = client.post("/orders", &[("traceparent", &three)], order);
    assert_eq!(taken.status, 202);
    let user = br#"{"email":"zoe@example.com","name":"Zoe"}"#;
    let four = with(4);
    let made = client.post("/api/users", &[("traceparent", &four)], user);
    assert!([200, 201].contains(&made.status), "{}", made.text());
    fs::write(&input, "a line\n").unwrap();
    wait_until("the requests", Duration::from_secs(20), || {
        let all = received.lock().unwrap();
        let has = |what: &str| all.iter().any(|(asked, _)| asked == what);
        has("POST /hook") && has("GET /hit") && has("POST /done")
    });
    wait_until("the order and the line", Duration::from_secs(20), || {
        let leased = |queue: &str| {
            collector.named("deliver").iter().any(|span| {
                text(&span.attributes, "messaging.destination.name").as_deref() == Some(queue)
            })
        };
        let appended = collector.named("append").iter().any(|span| {
            text(&span.attributes, "messaging.destination.name").as_deref() == Some("user-events")
        });
        leased("notifier.queue") && leased("line_stream") && appended
    });
    let records = world.ok(&["stream", "tail", "user-events", "--output", "json"]);
    assert!(running.stop().0.success());

    let below = ["enqueue", "lease", "deliver"];
    let way = |first: &'static str, rest: &[&'static str]| [&[first][..], rest].concat();
    let hook = [&way("POST /enqueue", &below)[..], &["POST"]].concat();
    let sent = path(&collector.trace(&trace(1)), CLIENT, &hook);
    let asked = |what: &str| {
        let all = received.lock().unwrap();
        let found = all.iter().find(|(asked, _)| asked == what).unwrap();
        found.1.clone()
    };
    let says = |number: u32, span: &Span| {
        format!("00-{}-{}-01", trace(number), hex::encode(&span.span_id))
    };
    assert_eq!(asked("POST /hook"), says(1, &sent));

    let spans = collector.trace(&trace(2));
    let hit = way("POST /hit", &below);
    let sent = path(&spans, CLIENT, &[&hit[..], &["GET"]].concat());
    assert_eq!(asked("GET /hit"), says(2, &sent));
    assert_eq!(sent.kind, SpanKind::Client as i32);
    let code = text(&sent.attributes, "http.response.status_code");
    assert_eq!(code.as_deref(), Some("200"));
    let done = path(&spans, CLIENT, &[&hit[..], &below, &["POST"]].concat());
    assert_eq!(asked("POST /done"), says(2, &done));

    let handled = ["publish", "lease", "deliver"];
    let order = way("POST /orders", &[handled, handled].concat());
    path(&collector.trace(&trace(3)), CLIENT, &order);

    let record = path(
        &collector.trace(&trace(4)),
        CLIENT,
        &["POST /api/users", "append"],
    );
    assert!(records.contains(&says(4, &record)), "{records}");

    let line = collector
        .named("append")
        .into_iter()
        .find(|span| {
            text(&span.attributes, "messaging.destination.name").as_deref() == Some("line_stream")
        })
        .unwrap();
    let spans = collector.trace(&hex::encode(&line.trace_id));
    path(&spans, "", &["append", "lease", "deliver"]);
}

#[test]
fn settings_count_wherever_they_come_from() {
    let collector = Collector::answering(&[503, 429]);
    let world = World::new();
    let dotenv = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1\n\
         OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={}/own/path\n\
         OTEL_EXPORTER_OTLP_HEADERS=api-key=se%20cret\n\
         OTEL_SERVICE_NAME=\n\
         OTEL_RESOURCE_ATTRIBUTES=service.name=shop\n\
         OTEL_TRACES_SAMPLER=always_on\n\
         OTEL_BSP_SCHEDULE_DELAY=50\n",
        collector.url()
    );
    fs::write(world.folder.join(".env"), dotenv).unwrap();
    let running = world.up();
    // The client says that it does not sample; the sampler does.
    let parent = traceparent().replace("-01", "-00");
    let with = [("traceparent", &*parent)];
    assert_eq!(world.client().post("/enqueue", &with, b"x").status, 200);
    wait_until("the spans", Duration::from_secs(10), || {
        !collector.trace(TRACE).is_empty()
    });
    assert!(running.stop().0.success());
    let calls = collector.calls.lock().unwrap();
    for call in calls.iter() {
        assert_eq!(call.path, "/own/path");
        assert_eq!(call.headers["api-key"], "se cret");
        assert_eq!(call.service, "shop");
    }
    assert!(!world.ok(&["config", "show"]).contains("se%20cret"));
}

#[test]
fn spans_are_compressed_when_asked() {
    for (compression, encoding) in [("gzip", Some("gzip")), ("zstd", None), ("none", None)] {
        // The second call repeats the first one's body.
        let collector = Collector::answering(&[503]);
        let mut world = World::new();
        world
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            .set("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
            .set("OTEL_BSP_SCHEDULE_DELAY", "50");
        let running = world.spawn(&["run", "ingest.api"]);
        running.wait_ready(&world);
        let with = [("traceparent", &*traceparent())];
        assert_eq!(world.client().post("/enqueue", &with, b"x").status, 200);
        wait_until("the spans", Duration::from_secs(10), || {
            !collector.trace(TRACE).is_empty()
        });
        let log = running.log();
        assert!(running.stop().0.success());
        let calls = collector.calls.lock().unwrap();
        for call in calls.iter() {
            let sent = call.headers.get("content-encoding").map(String::as_str);
            assert_eq!(sent, encoding, "{compression}");
        }
        assert_eq!(
            log.contains("compression of traces is not supported"),
            compression == "zstd"
        );
    }
}

#[test]
fn nothing_is_sent_when_traces_are_off_or_not_sampled() {
    let collector = Collector::new();
    let received: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&received);
    let site = serve(move |asked: Request| {
        let parent = asked.headers.get("traceparent").cloned();
        kept.lock().unwrap().push(parent.unwrap_or_default());
        Reply::text(200, "")
    });
    for (number, (name, value)) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = World::new();
        world
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            .set("TOWPATH_INGEST__WORKER__SINK", "webhook")
            .set(
                "TOWPATH_INGEST__WORKER__WEBHOOK__URL",
                format!("http://{site}/"),
            )
            .set(name, value);
        let running = world.spawn(&["run", "ingest.api,ingest.worker"]);
        running.wait_ready(&world);
        let with = [("traceparent", &*traceparent())];
        assert_eq!(world.client().post("/enqueue", &with, b"x").status, 200);
        wait_until("the post", Duration::from_secs(10), || {
            received.lock().unwrap().len() > number
        });
        assert!(running.stop().0.success());
        // The client's trace is passed on all the same.
        let parent = received.lock().unwrap()[number].clone();
        assert!(
            parent.starts_with(&format!("00-{TRACE}-")),
            "{name}: {parent}"
        );
        assert_eq!(parent.ends_with("-00"), name == "OTEL_TRACES_SAMPLER");
    }
    assert!(collector.calls.lock().unwrap().is_empty());
}

#[test]
fn a_protocol_that_is_not_spoken_is_refused_by_name() {
    let mut world = World::new();
    world
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
        .set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let output = world.run(&["up"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("`grpc`") && said.contains("http/protobuf"),
        "{said}"
    );
}

#[test]
fn an_unavailable_collector_delays_nothing_and_is_reported_once() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut world = World::new();
    world
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
        .set("OTEL_BSP_SCHEDULE_DELAY", "50");
    let running = world.up();
    let mut client = world.client();
    for round in 0..3 {
        for number in 0..20 {
            let text = format!("{round}.{number}");
            assert_eq!(client.post("/enqueue", &[], text.as_bytes()).status, 200);
        }
        world.wait_drained();
        wait_until("the warning", Duration::from_secs(10), || {
            running.log().contains("trace export failed")
        });
    }
    assert_eq!(world.lines().len(), 60);
    let (status, log, took) = running.stop();
    assert!(status.success(), "{log}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(log.matches("trace export failed").count(), 1, "{log}");
}
