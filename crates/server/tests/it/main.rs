//! The binary from outside, as a user meets it.
//!
//! One test binary, one module a theme; `chaos` modules repeat their story
//! `TOWPATH_SEEDS` times (a few by default, `make chaos` many).

#![allow(
    clippy::disallowed_methods,
    reason = "tests have no supervisor, and use the machine's clock where a process does"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]
#![expect(
    clippy::print_stderr,
    reason = "the test runner shows the output of failed tests"
)]

mod accounts;
mod admin;
mod auth;
mod auth_jwt;
mod auth_routes;
mod autoscale;
mod backup;
mod backup_faults;
mod backup_s3;
mod beside;
mod blame;
mod chaos;
mod cli;
mod client;
mod clock;
mod closed_output;
mod dashboard;
mod deploy;
mod differences;
mod disk;
mod doctor;
mod documents;
mod edge;
mod edge_forms;
mod fleet;
mod fleet_bare;
mod fleet_keys;
mod fleet_leftovers;
mod fleet_tasks;
mod fleet_truth;
mod hanging;
mod http2;
mod ingest;
mod jobs;
mod limits;
mod lines;
mod lines_changing_over;
mod lines_files;
mod lines_kafka;
mod lines_rotation;
mod mail;
mod manifests;
mod memory;
mod names;
mod orders;
mod orders_chaos;
mod orders_rabbitmq;
mod orders_rabbitmq_faults;
mod orders_two_brokers;
mod outages;
mod outbox;
mod package;
mod process;
mod producers;
mod protocol;
mod readme;
mod receivers;
mod receivers_chaos;
mod redis;
mod redis_trouble;
mod secrets;
mod several;
mod shutdown;
mod startup;
mod status;
mod status_full;
mod status_matrix;
mod supply;
mod tidy;
mod tls;
mod traces;
mod users;
mod vanished;
mod web;
mod worker;
