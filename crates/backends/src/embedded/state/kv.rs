//! Keys and values: conditions are checked on the resulting values, changes are absolute, so replay needs no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use towpath_core::port::kv::{Committed, MAX_KEY_BYTES, Op};
use towpath_core::{Error, Result, Timestamp};

use super::AT_ONCE;
use super::fields::Fields;
use crate::embedded::tables::{TableRecord, Tables};

/// Approximate memory of a key beside its bytes.
const OVERHEAD: usize = 160;

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Content {
    Value(Bytes),
    Fields(Fields),
    /// The key is gone, and a table may have it still. In no record, and in checkpoints since version 6.
    Gone,
}

/// A key's content, and until when it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Slot {
    pub(in super::super) content: Content,
    pub(in super::super) until: Option<Timestamp>,
}

/// Table lookups of keys that are not in memory.
pub(in super::super) type Cold = BTreeMap<String, Slot>;

/// Keys and their new values; `None` for deleted.
pub(in super::super) type Changes = Vec<(String, Option<Slot>)>;

/// Fields set in a hash that is there, and until when it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct FieldsSet {
    pub(in super::super) fields: Vec<(String, Bytes)>,
    pub(in super::super) until: Option<Timestamp>,
}

/// The changes of a list of ops; empty when it is refused.
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

/// The change of one key.
enum Draft {
    Slot(Option<Slot>),
    Fields(FieldsSet),
}

/// All keys: recently changed ones in memory, the others in tables.
#[derive(Debug, Default, Deserialize)]
pub(in super::super) struct KvState {
    #[serde(deserialize_with = "super::snapshot::map")]
    slots: OrdMap<String, Slot>,
    #[serde(skip)]
    expiring: BTreeSet<(Timestamp, String)>,
    /// Approximate memory of `slots` that can be freed.
    #[serde(skip)]
    bytes: usize,
    #[serde(skip)]
    tables: Tables,
    /// Keys are on their way to a table.
    #[serde(skip)]
    moving: bool,
    /// Why a table could not be read.
    #[serde(skip)]
    failure: Option<Error>,
    /// The tables that a checkpoint names, until they are opened.
    #[serde(skip)]
    named: Vec<TableRecord>,
}

impl KvState {
    pub(in super::super) fn snapshot(&self) -> OrdMap<String, Slot> {
        self.slots.clone()
    }

    pub(in super::super) const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Approximate memory of the keys that can be freed.
    pub(in super::super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// From now until [`KvState::stop_moving`] a key that goes leaves a mark: a table that is being written may have it.
    pub(in super::super) const fn start_moving(&mut self) {
        self.moving = true;
    }

    pub(in super::super) const fn stop_moving(&mut self) {
        self.moving = false;
    }

    /// Rests on these tables from now on.
    pub(in super::super) fn install(&mut self, tables: Tables) {
        self.tables = tables;
    }

    /// Removes an unchanged key of a table from memory.
    pub(in super::super) fn let_go(&mut self, key: &str, slot: &Slot) {
        if self.slots.get(key) == Some(slot) {
            self.take(key);
        }
    }

    /// Notes a table of a checkpoint, to be opened.
    pub(super) fn name_table(&mut self, named: TableRecord) {
        self.named.push(named);
    }

    /// Opens the tables that the checkpoint named.
    pub(in super::super) fn open_tables(&mut self, folder: &Path) -> Result<()> {
        self.tables = Tables::open(folder, &std::mem::take(&mut self.named))?;
        Ok(())
    }

    /// The read error of a table, after which the state differs from the log.
    pub(in super::super) const fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Keeps a key of a checkpoint.
    pub(super) fn keep(&mut self, key: String, slot: Slot) {
        self.put(key, slot);
    }

    /// Puts a slot in place of the one before.
    fn put(&mut self, key: String, slot: Slot) {
        let until = slot.until;
        self.bytes += cost(&key, &slot);
        let before = self.slots.insert(key.clone(), slot);
        if let Some(before) = &before {
            self.bytes -= cost(&key, before);
        }
        self.expire(&key, before.and_then(|before| before.until), until);
    }

    /// Takes a key out of memory.
    fn take(&mut self, key: &str) {
        if let Some(before) = self.slots.remove(key) {
            self.bytes -= cost(key, &before);
            self.expire(key, before.until, None);
        }
    }

    /// Removes a key.
    fn remove(&mut self, key: &str) {
        if self.moving || self.tables.may_have(key) {
            self.put(key.to_owned(), Slot::GONE);
        } else {
            self.take(key);
        }
    }

    pub(super) fn rebuild(&mut self) {
        let slots = self.slots.iter();
        self.bytes = slots.map(|(key, slot)| cost(key, slot)).sum();
        self.expiring = self
            .slots
            .iter()
            .filter_map(|(key, slot)| Some((slot.until?, key.clone())))
            .collect();
    }

    /// Removes some expired keys. Returns whether there are more.
    pub(in super::super) fn tick(&mut self, now: Timestamp) -> bool {
        for _ in 0..AT_ONCE {
            if self.expiring.first().is_none_or(|(until, _)| *until > now) {
                return false;
            }
            if let Some((_, key)) = self.expiring.pop_first() {
                self.remove(&key);
            }
        }
        true
    }

    /// Whether memory or a table may know a key, and memory does not.
    pub(in super::super) fn is_cold(&self, key: &str) -> bool {
        !self.slots.contains_key(key) && self.tables.may_have(key)
    }

    /// The value of a key, from memory or else from the tables.
    pub(in super::super) fn slot<'a>(
        &'a self,
        key: &str,
        cold: &'a Cold,
        now: Timestamp,
    ) -> Option<&'a Slot> {
        let slot = self.slots.get(key).or_else(|| cold.get(key));
        slot.filter(|slot| slot.is_there(now))
    }

    pub(super) fn apply(&mut self, changes: &[(String, Option<Slot>)]) {
        for (key, slot) in changes {
            match slot {
                Some(slot) => self.put(key.clone(), slot.copied()),
                None => self.remove(key),
            }
        }
    }

    pub(super) fn set_fields(&mut self, changes: &[(String, FieldsSet)]) {
        for (key, set) in changes {
            let known = match self.slots.get(key) {
                Some(slot) => Some(slot.clone()),
                // Only when the log is replayed: the key was in memory then, and has been moved since.
                None => self.tables.find(key).unwrap_or_else(|error| {
                    self.failure.get_or_insert(error);
                    None
                }),
            };
            let mut slot = known.unwrap_or_else(Slot::no_fields);
            if !matches!(slot.content, Content::Fields(_)) {
                slot = Slot::no_fields();
            }
            slot.until = set.until;
            if let Content::Fields(fields) = &mut slot.content {
                fields.set(set.fields.iter().map(|(field, value)| (field, value)));
            }
            self.put(key.clone(), slot);
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

    /// Computes the changes of the ops, one after the other, without applying them.
    ///
    /// `cold` has the table lookups of keys that are not in memory.
    pub(in super::super) fn plan(&self, ops: &[Op], cold: &Cold, now: Timestamp) -> Result<Plan> {
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
            let stored = self.slot(key, cold, now);
            // A hash in memory is changed in place, as long as no op needs all of it.
            if let Some(slot) = stored
                && self.slots.contains_key(key)
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

/// Approximate memory of a key that can be freed.
fn cost(key: &str, slot: &Slot) -> usize {
    let content = match &slot.content {
        Content::Value(value) => Some(value.len()),
        Content::Fields(fields) => fields.packed_bytes(),
        Content::Gone => Some(0),
    };
    content.map_or(0, |content| OVERHEAD + key.len() + content)
}

/// Keys with this prefix, in order, those behind `after`. Reads tables.
pub(in super::super) fn keys(
    memory: &OrdMap<String, Slot>,
    tables: &Tables,
    (prefix, after): (&str, Option<&str>),
    max: usize,
    now: Timestamp,
) -> Result<Vec<String>> {
    let after = after.filter(|after| *after >= prefix);
    let from = match after {
        Some(after) => Bound::Excluded(after.to_owned()),
        None => Bound::Included(prefix.to_owned()),
    };
    let memory = memory.range((from, Bound::Unbounded));
    let mut all = tables.merged(memory, after.unwrap_or(prefix))?;
    let mut keys = Vec::new();
    while keys.len() < max
        && let Some((key, slot)) = all.next()?
    {
        if !key.starts_with(prefix) {
            break;
        }
        if slot.is_there(now) && Some(&*key) != after {
            keys.push(key);
        }
    }
    Ok(keys)
}

impl Slot {
    /// The mark of a key that is gone.
    pub(in super::super) const GONE: Self = Self {
        content: Content::Gone,
        until: None,
    };

    /// Whether it holds something at this moment.
    pub(in super::super) fn is_there(&self, now: Timestamp) -> bool {
        self.content != Content::Gone && self.until.is_none_or(|until| until > now)
    }

    /// Whether it stays in memory: a large hash would be written whole for the next of its fields.
    pub(in super::super) fn stays(&self) -> bool {
        matches!(&self.content, Content::Fields(fields) if fields.packed_bytes().is_none())
    }

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
            Content::Gone => Content::Gone,
        };
        Self {
            content,
            until: self.until,
        }
    }

    fn value(&self) -> Option<Bytes> {
        match &self.content {
            Content::Value(value) => Some(value.clone()),
            Content::Fields(_) | Content::Gone => None,
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
