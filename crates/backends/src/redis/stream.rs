//! The stream port, on Redis streams and their groups: an entry has one field with the payload, and one for our metadata.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use redis::Value;
use tokio::time::Instant;
use towpath_core::port::queue::{check_batch, check_max};
use towpath_core::port::stream::{
    DEDUP_WINDOW, Entry, GroupStats, Offset, ReadRequest, Start, Stats, Stream, Trim, check_entry,
};
use towpath_core::{
    ConsumerId, Error, GroupName, Message, MessageId, NewMessage, Result, ResultExt, StreamName,
    Timestamp,
};

use super::notify::Kind;
use super::queue::{Blob, LOOK, STEP, step_of};
use super::reply;
use super::script::{self, Call};
use super::store::{ResourceHandle, Store, lock, millis};

/// End of a stream in the last round of maintenance.
#[derive(Default)]
pub(super) struct End {
    last: Option<Offset>,
    /// Groups whose position is past the end.
    beyond: BTreeSet<String>,
}

#[async_trait]
impl Stream for Store {
    async fn append(
        &self,
        stream: &StreamName,
        entries: Vec<NewMessage>,
    ) -> Result<Vec<Result<Offset>>> {
        check_batch(entries.len())?;
        self.servers.check_open()?;
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let (step, after) = rest.split_at(step_of(rest));
            rest = after;
            self.append_step(stream, step, &mut outcomes)
                .await
                .context(|| format!("append to `{stream}`"))?;
        }
        Ok(outcomes)
    }

    async fn create_group(
        &self,
        stream: &StreamName,
        group: &GroupName,
        start: Start,
    ) -> Result<()> {
        self.change_group("create", stream, group, Some(start))
            .await
    }

    async fn seek(&self, stream: &StreamName, group: &GroupName, to: Start) -> Result<()> {
        self.change_group("seek", stream, group, Some(to)).await
    }

    async fn delete_group(&self, stream: &StreamName, group: &GroupName) -> Result<()> {
        self.change_group("delete", stream, group, None).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Vec<Entry>> {
        check_max(request.max)?;
        // `None` for a wait without end.
        let until = Instant::now().checked_add(request.wait);
        let handle = self.stream(&request.stream).await?;
        handle.remember(&request.consumer);
        loop {
            // Listen before checking, so that no wakeup is missed.
            let mut changed = std::pin::pin!(handle.wakeup.changed.notified());
            changed.as_mut().enable();
            let mut closing = std::pin::pin!(self.closing.notified());
            closing.as_mut().enable();
            let mut call = handle.call(&script::READ);
            call.arg(request.group.as_str())
                .arg(request.consumer.as_str())
                .arg(&self.session)
                .arg(millis(self.config.consumer_timeout))
                .arg(request.max.min(STEP));
            let answer = self.servers.run(call).await;
            let [newest, entries] =
                reply::tuple(answer.context(|| format!("read from `{}`", request.stream))?)?;
            let entries = self.entries(entries, None)?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            let left = until.map_or(Duration::MAX, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(Vec::new());
            }
            let _waiting = handle.wakeup.wait_behind(reply::text(newest)?);
            tokio::select! {
                () = &mut changed => {}
                () = &mut closing => {}
                () = tokio::time::sleep(LOOK.min(left)) => {}
            }
        }
    }

    async fn commit(
        &self,
        stream: &StreamName,
        group: &GroupName,
        finished: &[Offset],
    ) -> Result<()> {
        let handle = self.stream(stream).await?;
        // An empty commit still checks that the group exists.
        let steps = finished
            .chunks(STEP)
            .chain(finished.is_empty().then_some(&[][..]));
        for step in steps {
            let mut call = handle.call(&script::COMMIT);
            call.arg(group.as_str());
            for offset in step {
                call.arg(id_text(*offset));
            }
            self.servers
                .run(call)
                .await
                .context(|| format!("commit to `{stream}`"))?;
        }
        Ok(())
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
        let handle = self.stream(stream).await?;
        handle.remember(consumer);
        let mut call = handle.call(&script::CLAIM);
        call.arg(group.as_str())
            .arg(consumer.as_str())
            .arg(&self.session)
            .arg(millis(self.config.consumer_timeout))
            .arg(millis(min_idle).min(1 << 52))
            .arg(max.min(STEP));
        let answer = self.servers.run(call).await;
        self.entries(answer.context(|| format!("claim from `{stream}`"))?, None)
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut count = 0;
        for stream in self.names(Kind::Stream).await? {
            let handle = self.stream(&StreamName::new(stream)?).await?;
            count += self.disconnect_consumer(&handle, consumer, "").await?;
        }
        Ok(count)
    }

    async fn range(
        &self,
        stream: &StreamName,
        after: Option<Offset>,
        max: usize,
    ) -> Result<Vec<Entry>> {
        check_max(max)?;
        let mut call = script::RANGE.on([self.keys.named(stream.as_str())?.list]);
        call.arg(after.map(id_text).unwrap_or_default())
            .arg(max.min(STEP));
        let answer = self.servers.run(call).await;
        self.entries(answer.context(|| format!("read `{stream}`"))?, Some(0))
    }

    async fn newest_of_others(&self, stream: &StreamName, max: usize) -> Result<Vec<Bytes>> {
        check_max(max)?;
        let name = self.keys.named(stream.as_str())?.list;
        let mut ask = redis::cmd("XREVRANGE");
        ask.arg(&name).arg("+").arg("-").arg("COUNT").arg(max);
        let found = self.servers.query(name.as_bytes(), &ask).await;
        let found = reply::list(found.context(|| format!("read the end of `{stream}`"))?)?;
        let mut payloads = Vec::new();
        for entry in found {
            let [id, fields] = reply::tuple(entry)?;
            let (message, is_ours) = self.read_fields(offset(id)?, fields)?;
            if is_ours {
                break;
            }
            payloads.push(message.payload);
        }
        payloads.reverse();
        Ok(payloads)
    }

    async fn trim(&self, stream: &StreamName, trim: Trim) -> Result<u64> {
        let mut call = script::TRIM.on([self.keys.named(stream.as_str())?.list]);
        call.arg(match trim {
            Trim::Finished => String::new(),
            Trim::KeepLast(keep) => keep.min(1 << 52).to_string(),
        });
        let answer = self.servers.run(call).await;
        reply::number(answer.context(|| format!("trim `{stream}`"))?)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for stream in self.names(Kind::Stream).await? {
            match Stream::stats(self, &StreamName::new(stream)?).await {
                Ok(stats) => all.push(stats),
                // It was deleted, or only queried.
                Err(error) if error.kind() == towpath_core::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn stats(&self, stream: &StreamName) -> Result<Stats> {
        let keys = self.keys.named(stream.as_str())?;
        let mut call = script::STREAM_STATS.on([keys.list]);
        call.arg(keys.side);
        let answer = self.servers.run(call).await;
        let [entries, appended, first, last, groups] =
            reply::tuple(answer.context(|| format!("count `{stream}`"))?)?;
        let mut groups = reply::list(groups)?
            .into_iter()
            .map(group_stats)
            .collect::<Result<Vec<_>>>()?;
        groups.sort_by(|one, other| one.group.cmp(&other.group));
        Ok(Stats {
            stream: stream.clone(),
            entries: reply::number(entries)?,
            appended: reply::number(appended)?,
            first: maybe_offset(first)?,
            last: maybe_offset(last)?,
            groups,
        })
    }
}

impl Store {
    /// Logs once when a stream lost entries that this process has seen, or a group's position is past its end.
    pub(super) fn watch_end(&self, handle: &ResourceHandle, answer: Value) -> Result<()> {
        let [last, beyond] = reply::tuple(answer)?;
        let last = match reply::text(last)?.as_str() {
            "" => None,
            text => Some(offset_of(text)?),
        };
        let mut end = lock(&handle.end);
        if last < end.last {
            tracing::warn!(
                stream = handle.keys.list,
                seen = end.last.map(id_text),
                last = last.map(id_text),
                "stream lost entries; unread ones are not delivered"
            );
        }
        end.last = last;
        let beyond: BTreeSet<String> = reply::list(beyond)?
            .into_iter()
            .map(reply::text)
            .collect::<Result<_>>()?;
        for group in beyond.difference(&end.beyond) {
            tracing::warn!(
                stream = handle.keys.list,
                group,
                last = last.map(id_text),
                "group position is ahead of its stream; entries up to it are not delivered"
            );
        }
        end.beyond = beyond;
        Ok(())
    }

    /// Sends one step of entries, and adds an outcome for each.
    async fn append_step(
        &self,
        stream: &StreamName,
        entries: &[NewMessage],
        outcomes: &mut Vec<Result<Offset>>,
    ) -> Result<()> {
        let handle = self.stream(stream).await?;
        let mut call = handle.call(&script::APPEND);
        call.arg(&self.config.field).arg(millis(DEDUP_WINDOW));
        let checked: Vec<Result<()>> = entries.iter().map(check_entry).collect();
        for (entry, checked) in entries.iter().zip(&checked) {
            if checked.is_ok() {
                add_entry(&mut call, entry)?;
            }
        }
        let answers = if checked.iter().any(Result::is_ok) {
            reply::list(self.servers.run(call).await?)?
        } else {
            Vec::new()
        };
        let mut answers = answers.into_iter();
        for checked in checked {
            outcomes.push(match checked {
                Err(refused) => Err(refused),
                Ok(()) => Ok(offset(answers.next().unwrap_or_default())?),
            });
        }
        handle.wakeup.changed.notify_waiters();
        Ok(())
    }

    async fn change_group(
        &self,
        what: &str,
        stream: &StreamName,
        group: &GroupName,
        start: Option<Start>,
    ) -> Result<()> {
        let handle = self.stream(stream).await?;
        let mut call = handle.call(&script::GROUP);
        call.arg(what).arg(group.as_str()).arg(match start {
            None | Some(Start::Beginning) => "0".to_owned(),
            Some(Start::End) => "$".to_owned(),
            Some(Start::After(offset)) => id_text(offset),
        });
        self.servers
            .run(call)
            .await
            .context(|| format!("{what} group `{group}` of `{stream}`"))?;
        handle.wakeup.changed.notify_waiters();
        Ok(())
    }

    /// Reads entries as `handed` in `stream_lib.lua` writes them; `attempt` when it is known.
    fn entries(&self, entries: Value, attempt: Option<u32>) -> Result<Vec<Entry>> {
        reply::list(entries)?
            .into_iter()
            .map(|entry| {
                let [id, fields, times] = reply::tuple(entry)?;
                let offset = offset(id)?;
                Ok(Entry {
                    offset,
                    message: self.message(offset, fields)?,
                    attempt: match attempt {
                        Some(attempt) => attempt,
                        None => u32::try_from(reply::number(times)?).unwrap_or(u32::MAX),
                    },
                })
            })
            .collect()
    }

    /// The payload is the field of the configured name, or the first one when another program has written the entry.
    fn message(&self, offset: Offset, fields: Value) -> Result<Message> {
        self.read_fields(offset, fields).map(|(message, _)| message)
    }

    /// The same, and whether the entry is ours.
    fn read_fields(&self, offset: Offset, fields: Value) -> Result<(Message, bool)> {
        let (mut payload, mut first, mut ours) = (None, None, None);
        let mut fields = reply::list(fields)?.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            let (name, value) = (reply::bytes(name)?, reply::bytes(value)?);
            if name == self.config.field.as_bytes() {
                payload = Some(value);
            } else if name == b"towpath" {
                ours = Some(value);
            } else if first.is_none() {
                first = Some(value);
            }
        }
        let is_ours = ours.is_some();
        let ours = ours.map(decode_field);
        let (id, blob) = match ours
            .as_deref()
            .and_then(|ours| ours.split_first_chunk::<16>())
        {
            Some((id, blob)) => (MessageId::from_bytes(*id), Blob::decode(blob)?),
            None => (id_at(offset), Blob::default()),
        };
        let message = Message {
            id,
            payload: Bytes::from(payload.or(first).unwrap_or_default()),
            headers: blob.headers,
            key: blob.key,
            enqueued_at: Timestamp::from_millis(parts(offset).0),
        };
        Ok((message, is_ours))
    }
}

/// Milliseconds and sequence number.
fn parts(offset: Offset) -> (u64, u64) {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves of the number are taken apart"
    )]
    ((offset.value >> 64) as u64, offset.value as u64)
}

/// An offset as a Redis entry id.
pub(super) fn id_text(offset: Offset) -> String {
    let (ms, number) = parts(offset);
    format!("{ms}-{number}")
}

fn offset(value: Value) -> Result<Offset> {
    offset_of(&reply::text(value)?)
}

fn offset_of(text: &str) -> Result<Offset> {
    let (ms, number) = text
        .split_once('-')
        .and_then(|(ms, number)| Some((ms.parse::<u64>().ok()?, number.parse::<u64>().ok()?)))
        .ok_or_else(|| {
            Error::corrupt(format!(
                "unexpected answer of redis `{text}`; expected an entry id"
            ))
        })?;
    Ok(Offset {
        partition: 0,
        value: (u128::from(ms) << 64) | u128::from(number),
    })
}

fn maybe_offset(value: Value) -> Result<Option<Offset>> {
    match value {
        Value::Nil => Ok(None),
        value => offset(value).map(Some),
    }
}

/// A stable id (UUIDv7) for an entry of another program.
fn id_at(offset: Offset) -> MessageId {
    let (ms, number) = parts(offset);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    bytes[6] = 0x70;
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    MessageId::from_bytes(bytes)
}

fn group_stats(value: Value) -> Result<GroupStats> {
    let [group, lag, pending, age, committed] = reply::tuple(value)?;
    Ok(GroupStats {
        group: GroupName::new(reply::text(group)?)?,
        lag: reply::number(lag)?,
        pending: reply::number(pending)?,
        oldest_age: match age {
            Value::Int(ms) => u64::try_from(ms).ok().map(Duration::from_millis),
            other => return Err(reply::unexpected("an age", &other)),
        },
        committed: maybe_offset(committed)?,
    })
}

/// The three arguments of an entry, as `append_entry` in `stream_lib.lua` reads them.
/// Prefix of the field `towpath` since release 0.2.0, whose value is base64, because other programs read fields as text.
const TEXT: &[u8] = b"1:";

fn encode_field(blob: &[u8]) -> Vec<u8> {
    let mut text = TEXT.to_vec();
    text.extend_from_slice(STANDARD_NO_PAD.encode(blob).as_bytes());
    text
}

/// The metadata in the field `towpath`. Release 0.1.0 wrote raw bytes: a message id whose first bytes are a time.
fn decode_field(field: Vec<u8>) -> Vec<u8> {
    let text = field.strip_prefix(TEXT);
    let decoded = text.and_then(|text| STANDARD_NO_PAD.decode(text).ok());
    decoded.unwrap_or(field)
}

pub(super) fn add_entry(call: &mut Call, entry: &NewMessage) -> Result<()> {
    let mut blob = entry.id.as_bytes().to_vec();
    blob.extend(Blob::encode(entry)?);
    call.arg(&entry.payload[..])
        .arg(encode_field(&blob))
        .arg(entry.dedup_id.as_deref().unwrap_or_default());
    Ok(())
}
