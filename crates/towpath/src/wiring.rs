//! Configuration becomes backends, apps and tasks.
//!
//! The only module that names the backends crate. Starting is in the order of
//! the data: backends, then what works on them, then the doors to the outside;
//! the admin listener comes first, so that probes can ask why the rest is not there yet.

mod backends;
mod bench;
mod demo;
mod ingest;
mod listener;
mod role;
mod run;

pub use backends::{open, schemes};
pub use bench::{BenchApi, ingest_api_for_bench};
pub use role::Role;
pub use run::{Started, start};
