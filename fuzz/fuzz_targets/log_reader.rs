//! Any bytes as a segment of the log: the reader must neither panic nor take memory for what is not there.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_backends::embedded::scan_for_fuzzing(bytes);
});
