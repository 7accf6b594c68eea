//! Any bytes as the journal of an output: existing output is never cut or changed.
#![no_main]

use std::fs;

use towpath::sink::{FileSink, LineFormat};
use towpath_core::port::Sink;

const THEIRS: &[u8] = b"a line of before\n";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("out");
    fs::write(&output, THEIRS).expect("an output");
    let mut journal = b"TOWPJNL\x01".to_vec();
    journal.extend_from_slice(bytes);
    fs::write(folder.path().join("out.journal"), journal).expect("a journal");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let sink = FileSink::new(&output, LineFormat::Raw);
        drop(sink.deliver(&[]).await);
    });
    let now = fs::read(&output).expect("the output");
    assert!(now.starts_with(THEIRS));
});
