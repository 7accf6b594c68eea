//! Keys and values: conditions are checked on what would be, changes are absolute, so replay needs no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use towpath_core::port::kv::{Committed, MAX_KEY_BYTES, Op};
use towpath_core::{Error, Result, Timestamp};

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Content {
    Value(Bytes),
    Fields(BTreeMap<String, Bytes>),
}

/// A key's content, and until when it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Slot {
    pub(in super::super) content: Content,
    pub(in super::super) until: Option<Timestamp>,
}

/// Keys and what they become; `None` for gone.
pub(in super::super) type Changes = Vec<(String, Option<Slot>)>;

/// What a list of ops comes to.
pub(in super::super) enum Plan {
    Apply {
        values: Vec<Option<Bytes>>,
        changes: Changes,
    },
    Refuse {
        index: usize,
        current: Option<Bytes>,
    },
}

impl Plan {
    pub(in super::super) fn into_parts(self) -> (Committed, Changes) {
        match self {
            Self::Apply { values, changes } => (Committed::Applied(values), changes),
            Self::Refuse { index, current } => (Committed::Refused { index, current }, Vec::new()),
        }
    }
}

/// Every key.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct KvState {
    slots: BTreeMap<String, Slot>,
    #[serde(skip)]
    expiring: BTreeSet<(Timestamp, String)>,
}

impl KvState {
    pub(super) fn rebuild(&mut self) {
        self.expiring = self
            .slots
            .iter()
            .filter_map(|(key, slot)| Some((slot.until?, key.clone())))
            .collect();
    }

    /// Forgets what has expired.
    pub(in super::super) fn tick(&mut self, now: Timestamp) {
        while self
            .expiring
            .first()
            .is_some_and(|(until, _)| *until <= now)
        {
            if let Some((_, key)) = self.expiring.pop_first() {
                self.slots.remove(&key);
            }
        }
    }

    pub(in super::super) fn slot(&self, key: &str, now: Timestamp) -> Option<&Slot> {
        self.slots
            .get(key)
            .filter(|slot| slot.until.is_none_or(|until| until > now))
    }

    /// Keys with this prefix, in order, those behind `after`.
    pub(in super::super) fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        max: usize,
        now: Timestamp,
    ) -> Vec<String> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.slots
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, slot)| slot.until.is_none_or(|until| until > now))
            .take(max)
            .map(|(key, _)| key.clone())
            .collect()
    }

    pub(super) fn apply(&mut self, changes: &[(String, Option<Slot>)]) {
        for (key, slot) in changes {
            let before = match slot {
                Some(slot) => self.slots.insert(key.clone(), slot.clone()),
                None => self.slots.remove(key),
            };
            if let Some(until) = before.and_then(|before| before.until) {
                self.expiring.remove(&(until, key.clone()));
            }
            if let Some(until) = slot.as_ref().and_then(|slot| slot.until) {
                self.expiring.insert((until, key.clone()));
            }
        }
    }

    /// Works out what the ops come to, one after the other, without changing anything.
    pub(in super::super) fn plan(&self, ops: &[Op], now: Timestamp) -> Result<Plan> {
        let mut draft: HashMap<&str, Option<Slot>> = HashMap::new();
        let mut values = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            let key = op.key();
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(Error::invalid(format!(
                    "a key must have 1 to {MAX_KEY_BYTES} bytes"
                )));
            }
            let current = match draft.get(key) {
                Some(slot) => slot.clone(),
                None => self.slot(key, now).cloned(),
            };
            match step(op, current, now)? {
                Step::To(slot) => {
                    values.push(slot.as_ref().and_then(Slot::value));
                    draft.insert(key, slot);
                }
                Step::Refused(current) => return Ok(Plan::Refuse { index, current }),
            }
        }
        let changes = draft
            .into_iter()
            .map(|(key, slot)| (key.to_owned(), slot))
            .collect();
        Ok(Plan::Apply { values, changes })
    }
}

impl Slot {
    fn value(&self) -> Option<Bytes> {
        match &self.content {
            Content::Value(value) => Some(value.clone()),
            Content::Fields(_) => None,
        }
    }
}

enum Step {
    To(Option<Slot>),
    Refused(Option<Bytes>),
}

fn step(op: &Op, current: Option<Slot>, now: Timestamp) -> Result<Step> {
    let until = |ttl: &Option<Duration>| ttl.map(|ttl| now.after(ttl));
    let put = |value: &Bytes, ttl| {
        Step::To(Some(Slot {
            content: Content::Value(value.clone()),
            until: until(ttl),
        }))
    };
    let value = current.as_ref().and_then(Slot::value);
    let needs_value = !matches!(
        op,
        Op::SetField { .. } | Op::Delete { .. } | Op::Expire { .. } | Op::Put { .. }
    );
    if needs_value && current.is_some() && value.is_none() {
        return Err(Error::invalid(format!(
            "key `{}` holds fields, not a value",
            op.key()
        )));
    }
    Ok(match op {
        Op::Put { value, ttl, .. } => put(value, ttl),
        Op::PutIfAbsent { .. } if current.is_some() => Step::Refused(value),
        Op::PutIfAbsent { value, ttl, .. } => put(value, ttl),
        Op::CompareAndSwap {
            expected,
            value: new,
            ttl,
            ..
        } => {
            if value == *expected {
                put(new, ttl)
            } else {
                Step::Refused(value)
            }
        }
        Op::Add {
            key,
            delta,
            min,
            max,
        } => {
            let text = value.as_deref().map_or(Ok("0"), std::str::from_utf8);
            let number: Option<i64> = text.ok().and_then(|text| text.parse().ok());
            let number =
                number.ok_or_else(|| Error::invalid(format!("key `{key}` holds no integer")))?;
            match number
                .checked_add(*delta)
                .filter(|sum| (min..=max).contains(&sum))
            {
                Some(sum) => {
                    let until = current.and_then(|slot| slot.until);
                    Step::To(Some(Slot {
                        content: Content::Value(sum.to_string().into()),
                        until,
                    }))
                }
                None => Step::Refused(value),
            }
        }
        Op::Delete { .. } => Step::To(None),
        Op::SetField { key, field, value } => {
            let (mut fields, until) = match current {
                None => (BTreeMap::new(), None),
                Some(Slot {
                    content: Content::Fields(fields),
                    until,
                }) => (fields, until),
                Some(_) => {
                    return Err(Error::invalid(format!(
                        "key `{key}` holds a value, not fields"
                    )));
                }
            };
            fields.insert(field.clone(), value.clone());
            Step::To(Some(Slot {
                content: Content::Fields(fields),
                until,
            }))
        }
        Op::Expire { ttl, .. } => match current {
            Some(slot) => Step::To(Some(Slot {
                until: until(ttl),
                ..slot
            })),
            None => Step::Refused(None),
        },
    })
}
