//! Shared by brokers without leases: a message's history, in-flight messages of this process,
//! counters.

#![cfg_attr(
    not(all(feature = "kafka", feature = "rabbitmq")),
    allow(dead_code, reason = "each broker uses a part")
)]

pub(crate) mod counters;
pub(crate) mod envelope;
pub(crate) mod in_flight;
