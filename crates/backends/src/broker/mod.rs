//! What is written once for brokers that know nothing of leases: a message's history, what this process has in hand,
//! what it counted.

#![cfg_attr(
    not(all(feature = "kafka", feature = "rabbitmq")),
    allow(dead_code, reason = "each broker uses a part")
)]

pub(crate) mod counters;
pub(crate) mod envelope;
pub(crate) mod in_flight;
