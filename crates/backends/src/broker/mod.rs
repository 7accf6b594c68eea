//! What is written once for brokers that know nothing of leases: a message's history, what this process has in hand,
//! what it counted.

pub(crate) mod envelope;
pub(crate) mod hand;
pub(crate) mod tally;
