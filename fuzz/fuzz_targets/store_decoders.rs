//! Any bytes as a record, a message and a checkpoint: the decoders must neither panic nor allocate memory for lengths that the bytes do not have.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_backends::embedded::fuzzing::decode_anything(bytes);
});
