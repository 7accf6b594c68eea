//! Any bytes as a segment of the log: the reader must neither panic nor allocate memory for lengths that the bytes do not have.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_backends::embedded::scan_for_fuzzing(bytes);
});
