//! Any bytes as a client's request: bodies of both enqueue paths, trace headers, and the text of an output line.
#![no_main]

use http::{HeaderMap, HeaderValue};
use towpath::sink::{escape, unescape};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_server::apps::ingest::decode_anything(bytes);

    let line = escape(bytes);
    assert!(!line.contains(char::is_control), "{line:?}");
    assert_eq!(unescape(&line).as_deref(), Some(bytes));
    // A line of another program is refused without a panic.
    drop(std::str::from_utf8(bytes).map(unescape));

    let mut headers = HeaderMap::new();
    let (parent, state) = bytes.split_at(bytes.len().min(60));
    if let (Ok(parent), Ok(state)) = (HeaderValue::from_bytes(parent), HeaderValue::from_bytes(state)) {
        headers.insert("traceparent", parent);
        headers.insert("tracestate", state);
        let mut kept = towpath_core::message::Headers::new();
        towpath::traces::TraceContext::from_headers(&headers)
            .expect("there is a parent")
            .write(&mut kept);
        assert_eq!(kept.get("traceparent").map(|parent| parent.is_ascii()), Some(true));
    }
});
