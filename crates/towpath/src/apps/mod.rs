//! The apps: what each group of roles promises, on top of the ports.

pub mod accounts;
pub mod fleet;
pub mod ingest;
pub mod lines;
pub mod orders;
