//! The embedded store.

mod log;
