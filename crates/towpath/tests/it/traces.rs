//! Traces, as a collector sees them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::process::{World, wait_until};

/// A collector on a port of its own; what it is sent comes out of the channel.
fn collector() -> (String, Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let line = line.to_ascii_lowercase();
                if line.trim().is_empty() {
                    break;
                }
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
            }
            assert!(head.starts_with("post /v1/traces "), "{head}");
            assert!(
                head.contains("content-type: application/x-protobuf"),
                "{head}"
            );
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.get_mut().write_all(reply).unwrap();
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn one_trace_crosses_from_the_post_to_the_file() {
    let (url, requests) = collector();
    let mut world = World::new();
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    let running = world.up();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let mut client = world.client();
    let with = [("traceparent", traceparent.as_str())];
    assert_eq!(client.post("/enqueue", &with, b"traced").status, 200);
    assert_eq!(client.post("/enqueue", &[], b"untraced").status, 200);
    world.wait_drained();
    // The last spans are sent before the process ends.
    assert!(running.stop().0.success());

    let mut traces: HashMap<String, HashMap<String, Span>> = HashMap::new();
    for request in requests.try_iter() {
        for resource in request.resource_spans {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            assert_eq!(text(attributes, "service.name").as_deref(), Some("towpath"));
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                let spans = traces.entry(hex(&span.trace_id)).or_default();
                assert!(spans.insert(span.name.clone(), span).is_none());
            }
        }
    }
    assert_eq!(traces.len(), 2, "{traces:?}");
    for (id, spans) in &traces {
        let (enqueue, lease, deliver) = (&spans["enqueue"], &spans["lease"], &spans["deliver"]);
        assert_eq!(spans.len(), 3, "{spans:?}");
        let parent = if id == trace { "00f067aa0ba902b7" } else { "" };
        assert_eq!(hex(&enqueue.parent_span_id), parent);
        assert_eq!(lease.parent_span_id, enqueue.span_id);
        assert_eq!(deliver.parent_span_id, lease.span_id);
        assert_eq!(
            text(&deliver.attributes, "towpath.sink").as_deref(),
            Some("file")
        );
        let queue = text(&lease.attributes, "messaging.destination.name");
        assert_eq!(queue.as_deref(), Some("messages"));
        for span in spans.values() {
            assert!(
                span.start_time_unix_nano <= span.end_time_unix_nano,
                "{span:?}"
            );
        }
    }
    assert!(traces.contains_key(trace), "{traces:?}");
}

#[test]
fn a_collector_that_is_away_holds_nothing_up_and_is_named_once() {
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
            running.log().contains("traces cannot be sent")
        });
    }
    assert_eq!(world.lines().len(), 60);
    let (status, log, took) = running.stop();
    assert!(status.success(), "{log}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(log.matches("traces cannot be sent").count(), 1, "{log}");
}
