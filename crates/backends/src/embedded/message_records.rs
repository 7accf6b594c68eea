//! Packs the messages of a record: each is written as its difference from the one expected behind its predecessor.
//!
//! Expected are the next id and a blob of the same length, as in a batch. Format: `docs/format/store.md`.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use towpath_core::{MessageId, Timestamp};

use super::record::MessageRecord;
use super::state::{NO_ID, Packing, Unpacking, next_id};

/// Flags of a message: the fields that follow them.
const KEY: u8 = 1;
const DEDUP_ID: u8 = 2;
const NOT_BEFORE: u8 = 4;
const EXPIRES: u8 = 8;
/// Set when it is not as expected.
const ID: u8 = 16;
const LENGTH: u8 = 32;

pub(super) fn serialize<S: Serializer>(
    arrivals: &[MessageRecord<'_>],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut out = Packing::default();
    let mut before = (NO_ID, 0);
    for arrival in arrivals {
        pack(before, arrival, &mut out);
        before = (arrival.id, arrival.blob_bytes);
    }
    serializer.serialize_bytes(&out.finish())
}

pub(super) fn deserialize<'de, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<MessageRecord<'a>>, D::Error> {
    let mut bytes = Unpacking::new(<&[u8]>::deserialize(deserializer)?);
    let (mut arrivals, mut before) = (Vec::new(), (NO_ID, 0));
    while !bytes.is_empty() {
        let arrival = unpack(before, &mut bytes)
            .ok_or_else(|| D::Error::custom("an arrival cannot be decoded"))?;
        before = (arrival.id, arrival.blob_bytes);
        arrivals.push(arrival);
    }
    Ok(arrivals)
}

fn pack((id, length): (MessageId, u32), arrival: &MessageRecord<'_>, out: &mut Packing) {
    let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
    let flags = flag(arrival.key.is_some(), KEY)
        | flag(arrival.dedup_id.is_some(), DEDUP_ID)
        | flag(arrival.not_before.is_some(), NOT_BEFORE)
        | flag(arrival.expires.is_some(), EXPIRES)
        | flag(arrival.id != next_id(id), ID)
        | flag(arrival.blob_bytes != length, LENGTH);
    out.byte(flags);
    if flags & ID != 0 {
        out.id(id, arrival.id);
    }
    if flags & LENGTH != 0 {
        out.step(length.into(), arrival.blob_bytes.into());
    }
    if let Some(key) = arrival.key {
        out.bytes(&key.to_le_bytes());
    }
    if let Some(dedup_id) = &arrival.dedup_id {
        out.number(dedup_id.len() as u64);
        out.bytes(dedup_id.as_bytes());
    }
    for moment in arrival.not_before.into_iter().chain(arrival.expires) {
        out.number(moment.as_millis());
    }
}

fn unpack<'a>(
    (id, length): (MessageId, u32),
    bytes: &mut Unpacking<'_>,
) -> Option<MessageRecord<'a>> {
    let flags = bytes.byte()?;
    if flags > KEY | DEDUP_ID | NOT_BEFORE | EXPIRES | ID | LENGTH {
        return None;
    }
    let mut arrival = MessageRecord {
        id: next_id(id),
        blob_bytes: length,
        key: None,
        dedup_id: None,
        not_before: None,
        expires: None,
    };
    if flags & ID != 0 {
        arrival.id = bytes.id(id)?;
    }
    if flags & LENGTH != 0 {
        arrival.blob_bytes = bytes.step32(length.into())?;
    }
    if flags & KEY != 0 {
        arrival.key = Some(u64::from_le_bytes(bytes.bytes(8)?.try_into().ok()?));
    }
    if flags & DEDUP_ID != 0 {
        let length = usize::try_from(bytes.number()?).ok()?;
        let dedup_id = std::str::from_utf8(bytes.bytes(length)?).ok()?;
        arrival.dedup_id = Some(Cow::Owned(dedup_id.to_owned()));
    }
    if flags & NOT_BEFORE != 0 {
        arrival.not_before = Some(Timestamp::from_millis(bytes.number()?));
    }
    if flags & EXPIRES != 0 {
        arrival.expires = Some(Timestamp::from_millis(bytes.number()?));
    }
    Some(arrival)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use towpath_core::QueueName;

    use super::*;
    use crate::embedded::record::Record;

    fn record(messages: Vec<MessageRecord<'static>>) -> Record<'static> {
        Record::EnqueuePacked {
            queue: QueueName::new("jobs").unwrap(),
            first: 7,
            at: Timestamp::from_millis(1_700_000_000_000),
            messages,
        }
    }

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn arrivals_of_all_kinds_read_back() {
        let mut rng = StdRng::seed_from_u64(3);
        for count in [0, 1, 2, 100] {
            let moment = |rng: &mut StdRng| {
                let is_there = rng.random_bool(0.3);
                is_there.then(|| Timestamp::from_millis(rng.random::<u64>()))
            };
            let messages = (0..count).map(|number| MessageRecord {
                id: match rng.random_bool(0.5) {
                    true => MessageId::new(),
                    false => MessageId::from_bytes(rng.random()),
                },
                blob_bytes: rng.random_range(5..200),
                key: rng.random_bool(0.3).then(|| rng.random()),
                dedup_id: rng
                    .random_bool(0.3)
                    .then(|| format!("caf\u{e9} {number}").into()),
                not_before: moment(&mut rng),
                expires: moment(&mut rng),
            });
            let record = record(messages.collect());
            let mut bytes = encoded(&record);
            let length = bytes.len();
            bytes.extend_from_slice(b"a blob");
            let (read, blobs) = Record::decode(&bytes).unwrap();
            assert_eq!((read, blobs as usize), (record, length));
            for end in 0..length {
                assert!(Record::decode(&bytes[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn an_arrival_of_a_batch_takes_one_byte() {
        let messages = |count: u8| {
            (0..count).map(|number| MessageRecord {
                id: MessageId::from_bytes(
                    [[1; 15].as_slice(), &[number]].concat().try_into().unwrap(),
                ),
                blob_bytes: 105,
                key: None,
                dedup_id: None,
                not_before: None,
                expires: None,
            })
        };
        let bytes = |count| encoded(&record(messages(count).collect())).len();
        assert_eq!(bytes(200), bytes(150) + 50);
    }
}
