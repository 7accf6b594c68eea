//! Any bytes as a record, a message and a checkpoint: the decoders must neither panic nor take memory for what is not there.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_backends::embedded::fuzzing::decode_anything(bytes);
});
