//! Deliveries and destinations for the tests of the sinks.

use std::time::Duration;

use crate::pump::{Destination, PATIENCE};
use bytes::Bytes;
use towpath_core::{Delivery, Headers, Message, MessageId, QueueName, Receipt, Timestamp};

/// The first delivery of a fresh message.
pub(crate) fn delivery(payload: impl Into<Bytes>) -> Delivery {
    Delivery {
        message: Message {
            id: MessageId::new(),
            payload: payload.into(),
            headers: Headers::new(),
            key: None,
            enqueued_at: Timestamp::default(),
        },
        receipt: Receipt {
            queue: QueueName::new("q").unwrap(),
            number: 1,
            fence: 1,
        },
        attempt: 1,
        interrupted: false,
        lease: Duration::from_secs(30),
    }
}

/// A destination that nothing watches.
pub(crate) fn destination(name: String) -> Destination {
    let clock = std::sync::Arc::new(towpath_core::SystemClock::new());
    let retry = towpath_core::retry::Policy::default();
    Destination::new(name, retry, PATIENCE, clock, std::sync::Arc::new(|_| {}))
}
