//! Requests to other programs: clients, the destinations that they may reach, and the meaning of answers.

pub mod answer;
pub mod certificate;
pub mod cidr;
mod client;
pub mod egress;

pub use client::{client, client_of, trusting_also, with_identity};
