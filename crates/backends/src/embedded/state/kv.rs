//! Keys and values: conditions are checked on what would be, changes are absolute, so replay needs no clock.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use towpath_core::port::kv::{Committed, MAX_KEY_BYTES, Op};
use towpath_core::{Error, Result, Timestamp};

use super::AT_ONCE;
use super::fields::Fields;

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Content {
    Value(Bytes),
    Fields(Fields),
}

/// A key's content, and until when it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Slot {
    pub(in super::super) content: Content,
    pub(in super::super) until: Option<Timestamp>,
}

/// Keys and what they become; `None` for gone.
pub(in super::super) type Changes = Vec<(String, Option<Slot>)>;

/// Fields set in a hash that is there, and until when it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct FieldsSet {
    pub(in super::super) fields: Vec<(String, Bytes)>,
    pub(in super::super) until: Option<Timestamp>,
}

/// What a list of ops comes to: nothing when it is refused.
pub(in super::super) struct Plan {
    pub(in super::super) committed: Committed,
    pub(in super::super) changes: Changes,
    /// A large hash is not written again for each of its fields.
    pub(in super::super) fields: Vec<(String, FieldsSet)>,
}

impl Plan {
    /// Whether anything is stored, and not only removed.
    pub(in super::super) fn grows(&self) -> bool {
        !self.fields.is_empty() || self.changes.iter().any(|(_, slot)| slot.is_some())
    }
}

/// What becomes of one key.
enum Draft {
    Slot(Option<Slot>),
    Fields(FieldsSet),
}

/// Every key.
#[derive(Debug, Default, Deserialize)]
pub(in super::super) struct KvState {
    #[serde(deserialize_with = "super::snapshot::map")]
    slots: OrdMap<String, Slot>,
    #[serde(skip)]
    expiring: BTreeSet<(Timestamp, String)>,
}

impl KvState {
    pub(super) fn snapshot(&self) -> OrdMap<String, Slot> {
        self.slots.clone()
    }

    /// Keeps a key of a checkpoint.
    pub(super) fn keep(&mut self, key: String, slot: Slot) {
        if let Some(until) = slot.until {
            self.expiring.insert((until, key.clone()));
        }
        self.slots.insert(key, slot);
    }

    pub(super) fn rebuild(&mut self) {
        self.expiring = self
            .slots
            .iter()
            .filter_map(|(key, slot)| Some((slot.until?, key.clone())))
            .collect();
    }

    /// Forgets some of what has expired. Whether there is more.
    pub(in super::super) fn tick(&mut self, now: Timestamp) -> bool {
        for _ in 0..AT_ONCE {
            if self.expiring.first().is_none_or(|(until, _)| *until > now) {
                return false;
            }
            if let Some((_, key)) = self.expiring.pop_first() {
                self.slots.remove(&key);
            }
        }
        true
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
            Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(prefix.to_owned()),
        };
        self.slots
            .range((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, slot)| slot.until.is_none_or(|until| until > now))
            .take(max)
            .map(|(key, _)| key.clone())
            .collect()
    }

    pub(super) fn apply(&mut self, changes: &[(String, Option<Slot>)]) {
        for (key, slot) in changes {
            let before = match slot {
                Some(slot) => self.slots.insert(key.clone(), slot.copied()),
                None => self.slots.remove(key),
            };
            let before = before.and_then(|before| before.until);
            self.expire(key, before, slot.as_ref().and_then(|slot| slot.until));
        }
    }

    pub(super) fn set_fields(&mut self, changes: &[(String, FieldsSet)]) {
        for (key, set) in changes {
            let slot = self
                .slots
                .entry(key.clone())
                .or_insert_with(Slot::no_fields);
            let before = std::mem::replace(&mut slot.until, set.until);
            if let Content::Value(_) = slot.content {
                *slot = Slot::no_fields();
            }
            if let Content::Fields(fields) = &mut slot.content {
                fields.set(set.fields.iter().map(|(field, value)| (field, value)));
            }
            self.expire(key, before, set.until);
        }
    }

    /// Keeps the index of moments.
    fn expire(&mut self, key: &str, before: Option<Timestamp>, until: Option<Timestamp>) {
        if before == until {
            return;
        }
        if let Some(before) = before {
            self.expiring.remove(&(before, key.to_owned()));
        }
        if let Some(until) = until {
            self.expiring.insert((until, key.to_owned()));
        }
    }

    /// Works out what the ops come to, one after the other, without changing anything.
    pub(in super::super) fn plan(&self, ops: &[Op], now: Timestamp) -> Result<Plan> {
        let mut drafts: HashMap<&str, Draft> = HashMap::new();
        let mut plan = Plan {
            committed: Committed::Applied(Vec::new()),
            changes: Vec::new(),
            fields: Vec::new(),
        };
        let mut values = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            let key = op.key();
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(Error::invalid(format!(
                    "a key must have 1 to {MAX_KEY_BYTES} bytes"
                )));
            }
            let stored = self.slot(key, now);
            // A stored hash is changed in place, as long as no op needs all of it.
            if let Some(slot) = stored
                && matches!(op, Op::SetField { .. } | Op::Expire { .. })
                && matches!(slot.content, Content::Fields(_))
                && let Draft::Fields(set) = drafts.entry(key).or_insert_with(|| slot.unchanged())
            {
                set.take_in(op, now);
                values.push(None);
                continue;
            }
            let current = match drafts.remove(key) {
                Some(Draft::Slot(slot)) => slot,
                Some(Draft::Fields(set)) => stored.map(|slot| slot.with(set)),
                None => stored.cloned(),
            };
            match step(op, current, now)? {
                Step::To(slot) => {
                    values.push(slot.as_ref().and_then(Slot::value));
                    drafts.insert(key, Draft::Slot(slot));
                }
                Step::Refused(current) => {
                    plan.committed = Committed::Refused { index, current };
                    return Ok(plan);
                }
            }
        }
        for (key, draft) in drafts {
            match draft {
                Draft::Slot(slot) => plan.changes.push((key.to_owned(), slot)),
                Draft::Fields(set) => plan.fields.push((key.to_owned(), set)),
            }
        }
        plan.committed = Committed::Applied(values);
        Ok(plan)
    }
}

impl FieldsSet {
    fn take_in(&mut self, op: &Op, now: Timestamp) {
        match op {
            Op::SetField { field, value, .. } => self.fields.push((field.clone(), value.clone())),
            Op::Expire { ttl, .. } => self.until = ttl.map(|ttl| now.after(ttl)),
            _ => {}
        }
    }
}

impl Slot {
    fn no_fields() -> Self {
        Self {
            content: Content::Fields(Fields::default()),
            until: None,
        }
    }

    /// The draft of a hash that stays as it is.
    const fn unchanged(&self) -> Draft {
        Draft::Fields(FieldsSet {
            fields: Vec::new(),
            until: self.until,
        })
    }

    /// The hash with these fields set.
    fn with(&self, set: FieldsSet) -> Self {
        let mut slot = self.clone();
        slot.until = set.until;
        if let Content::Fields(fields) = &mut slot.content {
            fields.set(set.fields.iter().map(|(field, value)| (field, value)));
        }
        slot
    }

    /// The slot with bytes of its own, to be kept: a slice would keep all of the buffer that it was read into, for
    /// instance that of a request.
    fn copied(&self) -> Self {
        let content = match &self.content {
            Content::Value(value) => Content::Value(Bytes::copy_from_slice(value)),
            // They have bytes of their own since they were set.
            Content::Fields(fields) => Content::Fields(fields.clone()),
        };
        Self {
            content,
            until: self.until,
        }
    }

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
                None => (Fields::default(), None),
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
            fields.set([(field, value)].into_iter());
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
