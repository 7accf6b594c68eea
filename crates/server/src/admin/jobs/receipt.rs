//! Receipts as text: which delivery, and which attempt it is.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use towpath_core::{Delivery, QueueName, Receipt};

/// The first byte; another one is a receipt of another version.
const VERSION: u8 = 1;

/// Version, session, attempt, number, fence and checksum.
const BYTES: usize = 1 + 4 + 4 + 8 + 8 + 4;

/// A receipt that a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeasedAttempt {
    pub(super) receipt: Receipt,
    /// 1 for the first delivery.
    pub(super) attempt: u32,
}

/// Why a receipt cannot settle a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is not a receipt of this queue.
    Invalid,
    /// Another process leased the delivery, or this one before its restart.
    OtherProcess,
}

/// The receipt of a delivery as text.
pub(super) fn encode(delivery: &Delivery, session: Option<u32>) -> String {
    let Delivery {
        receipt, attempt, ..
    } = delivery;
    let session = session.unwrap_or_default();
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.push(VERSION);
    bytes.extend(session.to_be_bytes());
    bytes.extend(attempt.to_be_bytes());
    bytes.extend(receipt.number.to_be_bytes());
    bytes.extend(receipt.fence.to_be_bytes());
    bytes.extend(checksum(&receipt.queue, &bytes).to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a receipt of this queue.
///
/// - `session`: of this process, where leases belong to one.
pub(super) fn decode(
    text: &str,
    queue: &QueueName,
    session: Option<u32>,
) -> Result<LeasedAttempt, Unusable> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let bytes = bytes.and_then(|bytes| <[u8; BYTES]>::try_from(bytes).ok());
    let bytes = bytes.ok_or(Unusable::Invalid)?;
    let (fields, sum) = bytes.split_at(BYTES - 4);
    if fields[0] != VERSION || sum != checksum(queue, fields).to_be_bytes() {
        return Err(Unusable::Invalid);
    }
    let number = |from: usize, to: usize| {
        let digits = fields[from..to].iter();
        digits.fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if session.is_some_and(|session| u64::from(session) != number(1, 5)) {
        return Err(Unusable::OtherProcess);
    }
    Ok(LeasedAttempt {
        receipt: Receipt {
            queue: queue.clone(),
            number: number(9, 17),
            fence: number(17, 25),
        },
        attempt: u32::try_from(number(5, 9)).unwrap_or(u32::MAX),
    })
}

/// Detects receipts of other queues and damaged ones; it is not a secret. FNV-1a.
fn checksum(queue: &QueueName, fields: &[u8]) -> u32 {
    let bytes = queue.as_str().bytes().chain(fields.iter().copied());
    bytes.fold(0x811c_9dc5, |sum: u32, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towpath_core::{Headers, Message, MessageId, Timestamp};

    use super::*;

    fn delivery(queue: &str) -> Delivery {
        Delivery {
            message: Message {
                id: MessageId::new(),
                payload: bytes::Bytes::new(),
                headers: Headers::new(),
                key: None,
                enqueued_at: Timestamp::from_millis(0),
            },
            receipt: Receipt {
                queue: QueueName::new(queue).expect("a name"),
                number: u64::MAX - 1,
                fence: 1 << 40,
            },
            attempt: 7,
            interrupted: false,
            lease: Duration::from_secs(30),
        }
    }

    #[test]
    fn a_receipt_is_read_as_it_was_written() {
        let delivery = delivery("emails");
        let queue = &delivery.receipt.queue;
        for session in [None, Some(5)] {
            let text = encode(&delivery, session);
            let ticket = decode(&text, queue, session).expect("a receipt");
            assert_eq!(ticket.receipt, delivery.receipt);
            assert_eq!(ticket.attempt, 7);
        }
    }

    #[test]
    fn other_receipts_are_refused() {
        let delivery = delivery("emails");
        let queue = &delivery.receipt.queue;
        let text = encode(&delivery, Some(5));
        assert_eq!(decode(&text, queue, Some(6)), Err(Unusable::OtherProcess));
        let other = QueueName::new("thumbnails").expect("a name");
        assert_eq!(decode(&text, &other, Some(5)), Err(Unusable::Invalid));
        let mut damaged = text.clone().into_bytes();
        damaged[10] = if damaged[10] == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(damaged).expect("text");
        for wrong in ["", "garbage", "§", &text[1..], &damaged] {
            assert_eq!(
                decode(wrong, queue, None),
                Err(Unusable::Invalid),
                "{wrong}"
            );
        }
    }
}
