//! Storage drivers, one folder each.

pub mod embedded;
