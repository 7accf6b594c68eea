//! Towpath: the asynchronous backbone of a backend in one binary.
//!
//! Read in this order: [`apps`] (the promises of each role), [`towpath::pump`] (the one
//! loop that leases, delivers and settles), [`wiring`] (configuration becomes
//! running roles). Only it and [`stores`] name the backends crate.

pub mod admin;
pub mod apps;
pub mod auth;
pub mod backup;
pub mod cli;
pub mod config;
mod dashboard;
pub mod doctor;
pub mod documents;
pub mod http;
mod idempotency;
mod last_resort;
pub mod leftovers;
pub mod problems;
mod queue_settings;
pub mod source;
pub mod stores;
pub mod telemetry;
pub mod token;
pub mod wiring;
