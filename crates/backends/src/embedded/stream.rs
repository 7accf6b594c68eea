//! The stream port.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use towpath_core::port::queue::{check_batch, check_max};
use towpath_core::port::stream::{
    Entry, Offset, ReadRequest, Start, Stats, Stream, Trim, check_entry,
};
use towpath_core::{
    ConsumerId, Error, ErrorKind, GroupName, NewMessage, Result, ResultExt, StreamName,
};

use super::blob;
use super::log::{Class, Position};
use super::queue::{millis, refusal_like};
use super::record::{MessageRecord, Record};
use super::state::{Handed, Stored, StreamEntry, StreamState, Taking, offset};
use super::store::{Inner, Store};

#[async_trait]
impl Stream for Store {
    async fn append(
        &self,
        stream: &StreamName,
        entries: Vec<NewMessage>,
    ) -> Result<Vec<Result<Offset>>> {
        check_batch(entries.len())?;
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let (outcomes, end) = self.append_all(stream, &entries)?;
        self.log
            .committed(end)
            .await
            .context(|| format!("append to `{stream}`"))?;
        Ok(outcomes)
    }

    async fn create_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        start: Start,
    ) -> Result<()> {
        let end = {
            let mut inner = self.lock();
            let state = inner.state.streams.get(stream);
            if state.is_some_and(|state| state.groups.contains_key(group)) {
                self.log.awaited_end()
            } else {
                let last = state.map_or(0, StreamState::last);
                let record = group_at(stream, group, start, last)?;
                self.write(&mut inner, Class::Settle, &record)?
            }
        };
        self.log.committed(end).await
    }

    async fn seek(&self, stream: &StreamName, group: &GroupName, to: Start) -> Result<()> {
        let end = {
            let mut inner = self.lock();
            let last = with_group(&mut inner, stream, group)?.last();
            let record = group_at(stream, group, to, last)?;
            self.write(&mut inner, Class::Settle, &record)?
        };
        self.log.committed(end).await?;
        self.news(stream).notify_waiters();
        Ok(())
    }

    async fn delete_group(&self, stream: &StreamName, group: &GroupName) -> Result<()> {
        let end = {
            let mut inner = self.lock();
            match with_group(&mut inner, stream, group) {
                Err(_) => self.log.awaited_end(),
                Ok(_) => {
                    let (stream, group) = (stream.clone(), group.clone());
                    let record = Record::GroupGone { stream, group };
                    self.write(&mut inner, Class::Settle, &record)?
                }
            }
        };
        self.log.committed(end).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Vec<Entry>> {
        check_max(request.max)?;
        // `None` for a moment that no clock reaches.
        let until = Instant::now().checked_add(request.wait);
        let news = self.news(&request.stream);
        loop {
            // Listening starts before looking, so that nothing slips through in between.
            let mut notified = std::pin::pin!(news.notified());
            notified.as_mut().enable();
            if self.is_closed() {
                return Err(Error::unavailable("the store is closed"));
            }
            let handed = self.hand_entries(&request)?;
            if !handed.is_empty() {
                let entries = self.entries(&request.stream, &request.group, handed)?;
                if !entries.is_empty() {
                    return Ok(entries);
                }
                continue;
            }
            match until {
                None => notified.await,
                Some(until) => {
                    if tokio::time::timeout_at(until, notified).await.is_err() {
                        return Ok(Vec::new());
                    }
                }
            }
        }
    }

    async fn commit(
        &self,
        stream: &StreamName,
        group: &GroupName,
        finished: &[Offset],
    ) -> Result<()> {
        let end = {
            let mut inner = self.lock();
            let record = finish(&mut inner, stream, group, finished)?;
            match record {
                Some(record) => self.write(&mut inner, Class::Settle, &record)?,
                None => self.log.awaited_end(),
            }
        };
        self.log.committed(end).await.context(|| "commit entries")
    }

    async fn claim(
        &self,
        stream: &StreamName,
        group: &GroupName,
        consumer: &ConsumerId,
        min_idle: Duration,
        max: usize,
    ) -> Result<Vec<Entry>> {
        check_max(max)?;
        let handed = {
            let mut inner = self.lock();
            let monotonic = self.monotonic();
            let since = monotonic.checked_sub(millis(min_idle));
            let taking = Taking {
                consumer,
                max,
                monotonic,
            };
            let handed = with_group(&mut inner, stream, group)?.claim(group, &taking, since);
            self.note_handed(&mut inner, stream, group, &handed)?;
            handed
        };
        self.entries(stream, group, handed)
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut inner = self.lock();
        let groups = inner
            .state
            .streams
            .values_mut()
            .flat_map(|stream| stream.groups.values_mut());
        Ok(groups.map(|group| group.disconnect(consumer)).sum())
    }

    async fn range(
        &self,
        stream: &StreamName,
        after: Option<Offset>,
        max: usize,
    ) -> Result<Vec<Entry>> {
        check_max(max)?;
        let after = after.map_or(Ok(0), number)?;
        let found = {
            let end = self.log.committed_position();
            known(&mut self.lock(), stream)?.range(after, max, end)
        };
        let stored: Vec<Stored> = found.iter().map(StreamEntry::stored).collect();
        found
            .into_iter()
            .zip(self.read_back(&stored))
            .filter(
                |(_, message)| !matches!(message, Err(error) if error.kind() == ErrorKind::Corrupt),
            )
            .map(|(entry, message)| {
                Ok(Entry {
                    offset: offset(entry.number),
                    message: message?,
                    attempt: 0,
                })
            })
            .collect()
    }

    async fn trim(&self, stream: &StreamName, trim: Trim) -> Result<u64> {
        let (count, end) = {
            let mut inner = self.lock();
            let state = known(&mut inner, stream)?;
            let upto = match trim {
                Trim::Finished => state.finished_by_all(),
                Trim::KeepLast(keep) => state.all_but(keep),
            };
            let count = upto.map_or(0, |upto| state.count_up_to(upto));
            match upto.filter(|_| count > 0) {
                None => (0, self.log.awaited_end()),
                Some(upto) => {
                    let stream = stream.clone();
                    let record = Record::Trim { stream, upto };
                    (count, self.write(&mut inner, Class::Settle, &record)?)
                }
            }
        };
        self.log.committed(end).await?;
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let (inner, now) = (self.lock(), self.clock.now());
        let streams = inner.state.streams.iter();
        Ok(streams
            .map(|(name, state)| state.stats(name, now))
            .collect())
    }

    async fn stats(&self, stream: &StreamName) -> Result<Stats> {
        let now = self.clock.now();
        Ok(known(&mut self.lock(), stream)?.stats(stream, now))
    }
}

impl Store {
    /// Checks every entry, and writes those that are taken as one record.
    fn append_all(
        &self,
        stream: &StreamName,
        messages: &[NewMessage],
    ) -> Result<(Vec<Result<Offset>>, Position)> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.blobs.clear();
        let (mut outcomes, record) = self.plan_appends(inner, stream, messages)?;
        match record.map(|record| self.write(inner, Class::Grow, &record)) {
            None => {}
            Some(Ok(end)) => {
                self.wake_when_committed(stream, end);
                return Ok((outcomes, end));
            }
            // A refusal is each entry's own, so that a batch looks the same whatever was full.
            Some(Err(error)) if error.retry_after().is_some() => {
                for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                    *outcome = Err(refusal_like(&error));
                }
            }
            Some(Err(error)) => return Err(error),
        }
        // A duplicate relies on a record that may not be durable yet.
        Ok((outcomes, self.log.awaited_end()))
    }

    /// The entries of a batch that would be accepted; blobs are added to `inner.blobs`.
    pub(super) fn plan_appends<'a>(
        &self,
        inner: &mut Inner,
        stream: &StreamName,
        messages: &'a [NewMessage],
    ) -> Result<(Vec<Result<Offset>>, Option<Record<'a>>)> {
        let now = self.clock.now();
        let state = inner.state.stream(stream);
        let first = state.last() + 1;
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut entries = Vec::with_capacity(messages.len());
        let mut in_batch = HashMap::new();
        for message in messages {
            if let Err(refused) = check_entry(message) {
                outcomes.push(Err(refused));
                continue;
            }
            let next = first + entries.len() as u64;
            if let Some(dedup_id) = message.dedup_id.as_deref() {
                let known = in_batch.get(dedup_id).copied();
                if let Some(known) = known.or_else(|| state.duplicate_of(dedup_id, now)) {
                    outcomes.push(Ok(offset(known)));
                    continue;
                }
                in_batch.insert(dedup_id, next);
            }
            entries.push(MessageRecord {
                id: message.id,
                blob_bytes: blob::encode(message, now, &mut inner.blobs)?,
                key: None,
                dedup_id: message.dedup_id.as_deref().map(Cow::Borrowed),
                not_before: None,
                expires: None,
            });
            outcomes.push(Ok(offset(next)));
        }
        let record = (!entries.is_empty()).then(|| Record::AppendPacked {
            stream: stream.clone(),
            first,
            at: now,
            entries,
        });
        Ok((outcomes, record))
    }

    fn hand_entries(&self, request: &ReadRequest) -> Result<Handed> {
        let ReadRequest { stream, group, .. } = request;
        let end = self.log.committed_position();
        let mut inner = self.lock();
        let taking = Taking {
            consumer: &request.consumer,
            max: request.max,
            monotonic: self.monotonic(),
        };
        let handed = with_group(&mut inner, stream, group)?.read(group, &taking, end);
        self.note_handed(&mut inner, stream, group, &handed)?;
        Ok(handed)
    }

    /// Not waited for: a crash within one sync of the handing-out may forget that this attempt was begun.
    fn note_handed(
        &self,
        inner: &mut Inner,
        stream: &StreamName,
        group: &GroupName,
        handed: &Handed,
    ) -> Result<()> {
        if handed.is_empty() {
            return Ok(());
        }
        let record = Record::Handed {
            stream: stream.clone(),
            group: group.clone(),
            numbers: handed.iter().map(|(entry, _)| entry.number).collect(),
        };
        self.note(inner, &record)
    }

    /// Reads the delivered entries. A damaged one is named and finished, so that the rest is served.
    fn entries(
        &self,
        stream: &StreamName,
        group: &GroupName,
        handed: Handed,
    ) -> Result<Vec<Entry>> {
        let stored: Vec<Stored> = handed.iter().map(|(entry, _)| entry.stored()).collect();
        let mut entries = Vec::with_capacity(handed.len());
        let mut damaged = Vec::new();
        for ((entry, attempt), message) in handed.iter().zip(self.read_back(&stored)) {
            let (offset, attempt) = (offset(entry.number), *attempt);
            match message {
                Ok(message) => entries.push(Entry {
                    offset,
                    message,
                    attempt,
                }),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    tracing::error!(%stream, offset = entry.number, id = %entry.id, error = error.chain(), "damaged entry skipped");
                    damaged.push(offset);
                }
                Err(error) => {
                    let mut inner = self.lock();
                    if let Some(state) = inner.state.stream(stream).groups.get_mut(group) {
                        state.put_back(handed.iter().map(|(entry, _)| entry.number));
                    }
                    return Err(error);
                }
            }
        }
        if !damaged.is_empty() {
            let mut inner = self.lock();
            if let Some(record) = finish(&mut inner, stream, group, &damaged)? {
                self.write(&mut inner, Class::Settle, &record)?;
            }
        }
        Ok(entries)
    }
}

/// The record that marks these entries as finished; `None` when none of them is kept.
pub(super) fn finish(
    inner: &mut Inner,
    stream: &StreamName,
    group: &GroupName,
    finished: &[Offset],
) -> Result<Option<Record<'static>>> {
    let state = with_group(inner, stream, group)?;
    let mut numbers = Vec::with_capacity(finished.len());
    for one in finished {
        let number = number(*one)?;
        if state.has(number) {
            numbers.push(number);
        }
    }
    Ok((!numbers.is_empty()).then(|| Record::Finish {
        stream: stream.clone(),
        group: group.clone(),
        numbers,
    }))
}

/// The record that sets the start of a group.
fn group_at(
    stream: &StreamName,
    group: &GroupName,
    start: Start,
    last: u64,
) -> Result<Record<'static>> {
    let committed = match start {
        Start::Beginning => 0,
        Start::End => last,
        // Behind the end there is nothing yet, and later entries must not be skipped.
        Start::After(place) => number(place)?.min(last),
    };
    Ok(Record::Group {
        stream: stream.clone(),
        group: group.clone(),
        committed,
    })
}

fn known<'a>(inner: &'a mut Inner, stream: &StreamName) -> Result<&'a mut StreamState> {
    let state = inner.state.streams.get_mut(stream);
    state.ok_or_else(|| Error::not_found(format!("there is no stream `{stream}`")))
}

/// The stream, which has this group.
fn with_group<'a>(
    inner: &'a mut Inner,
    stream: &StreamName,
    group: &GroupName,
) -> Result<&'a mut StreamState> {
    let state = inner.state.streams.get_mut(stream);
    state
        .filter(|state| state.groups.contains_key(group))
        .ok_or_else(|| Error::not_found(format!("stream `{stream}` has no group `{group}`")))
}

fn number(offset: Offset) -> Result<u64> {
    let number = u64::try_from(offset.value).ok();
    number.filter(|_| offset.partition == 0).ok_or_else(|| {
        Error::invalid(format!(
            "offset {} of partition {} is not of this store",
            offset.value, offset.partition
        ))
    })
}
