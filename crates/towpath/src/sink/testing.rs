//! Deliveries for the tests of the sinks.

use std::time::Duration;

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
