//! The reader: follows files and appends their lines.

#![expect(
    clippy::disallowed_methods,
    reason = "compared with times of the file system"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::join_all;
use towpath_core::port::Stream;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome, SourceOffsets};
use towpath_core::retry::Backoff;
use towpath_core::{Error, ErrorKind, NewMessage, QueueName, Result, ResultExt, StreamName, retry};
use tracing::{debug, info, warn};

use super::Backpressure;
use crate::source::{self, Chunk, Inputs, Limits, Line, Position, Saved, Tail, Wake};
use crate::telemetry::{Health, LineMetrics, log_failure};
use towpath::supervisor::Stop;
use towpath::traces;

/// Retries of an append that met an unavailable backend, and of a file that cannot be read.
pub(super) const AGAIN: retry::Policy =
    retry::Policy::forever(Duration::from_millis(50), Duration::from_secs(5));

/// Longest pause while one of several inputs cannot be read.
const LONGEST: Duration = Duration::from_secs(1);

/// Before a stream and a name: how far a file was read.
pub(super) const POSITION: &str = "lines.position:";

/// Before an input in the names of positions: when files of the input were looked at for the first time.
const START: &str = "start-";

/// Before a file in the names of positions.
const FILE: &str = "file-";

/// The header that says why a line is in the queue of those that were not sent.
const REASON: &str = "reason";

/// Most files of which lines are sent at the same time.
const AT_ONCE: usize = 16;

/// Where a file begins that was never read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With its first line.
    Beginning,
    /// With the first line that is written from now on.
    End,
}

/// Followed inputs and settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which files.
    pub inputs: Inputs,
    /// Where their lines go.
    pub stream: StreamName,
    /// Where lines over the limit go.
    pub too_long: QueueName,
    /// Where to begin.
    pub start: Start,
    /// Bounds of a batch.
    pub limits: Limits,
    /// Idle time after which a renamed file is closed.
    pub rotate_wait: Duration,
    /// Retention of the position of a closed file.
    pub forget_after: Duration,
    /// Linger after a pause.
    pub linger: Duration,
    /// Interval of checks of files without new lines.
    pub poll: Duration,
    /// The name of this host.
    pub host: String,
}

/// Follows the files of some inputs.
#[derive(Clone)]
pub struct Reader {
    /// The role's name in health.
    pub role: &'static str,
    /// Followed inputs and settings.
    pub settings: Settings,
    /// Takes lines, and moves the position in the same step.
    pub positions: Arc<dyn SourceOffsets>,
    /// Checks whether the bytes before the position are unchanged.
    pub streams: Arc<dyn Stream>,
    /// Receives problems.
    pub health: Health,
    /// Receives lines, and the position of each file.
    pub metrics: LineMetrics,
    /// Waited for, when the writer is in this process.
    pub backpressure: Option<Backpressure>,
}

/// The outcome of a chunk.
enum Sent {
    /// Its lines are in the stream, and this is the position's value.
    Done(Bytes),
    /// Another reader moved the position, to this value.
    Elsewhere(Option<Bytes>),
    /// The stop came first.
    Stopped,
}

/// The values that positions have, by the name that each is stored under.
type Values = HashMap<String, Bytes>;

impl Reader {
    /// Follows the files until the stop is requested.
    ///
    /// # Errors
    /// Those of the backend that a retry cannot fix.
    pub async fn run(mut self, stop: &Stop) -> Result<()> {
        let Some((mut values, mut saved)) = self.load(stop).await? else {
            return Ok(());
        };
        if self.settings.start == Start::End && self.begin_inputs(&mut values, stop).await? {
            return Ok(());
        }
        self.resume(&mut saved, stop).await?;
        self.check_stream(&saved).await;
        self.greet(&saved);
        let settings = source::Settings {
            inputs: self.settings.inputs.clone(),
            limits: self.settings.limits,
            rotate_wait: self.settings.rotate_wait,
            forget_after: self.settings.forget_after,
            host: self.settings.host.clone(),
        };
        self.follow(Tail::new(settings, saved), values, stop).await
    }

    /// Sends chunk after chunk until the stop comes.
    async fn follow(&self, mut tail: Tail, mut values: Values, stop: &Stop) -> Result<()> {
        let (mut wake, mut is_reading) = (Wake::new(), false);
        let mut backoff = Backoff::new(AGAIN);
        let (mut shown, mut logged) = (BTreeSet::new(), BTreeSet::new());
        while !stop.is_requested() {
            // Files are read on threads of their own; the tail returns with its results.
            let (back, chunks) = tokio::task::spawn_blocking(move || {
                tail.look(is_reading);
                let chunks = tail.read(AT_ONCE);
                (tail, chunks)
            })
            .await
            .map_err(|panic| {
                Error::unavailable("reading the inputs panicked").with_source(panic)
            })?;
            tail = back;
            is_reading = !chunks.is_empty();
            wake.watch(&tail.folders());
            self.show(&tail, &mut shown);
            let is_well = self.report(&tail, &mut logged);
            for name in tail.expired() {
                self.forget(&name, &mut values).await;
            }
            if chunks.is_empty() {
                let pause = match is_well {
                    true => {
                        backoff.reset();
                        self.settings.poll
                    }
                    false => {
                        self.metrics.input_failed();
                        // Other inputs may have lines.
                        backoff.next_delay().min(LONGEST)
                    }
                };
                tokio::select! {
                    () = wake.changed(), if is_well => drop(stop.sleep(self.settings.linger).await),
                    () = tokio::time::sleep(pause) => {}
                    () = stop.requested() => {}
                }
                continue;
            }
            if let Some(backpressure) = &self.backpressure {
                let lines: usize = chunks.iter().map(|chunk| chunk.lines.len()).sum();
                tokio::select! {
                    () = backpressure.wait(lines as u64) => {}
                    () = stop.requested() => return Ok(()),
                }
            }
            let sent = chunks.iter().map(|chunk| {
                let expected = values.get(&self.name(&chunk.position.key())).cloned();
                self.send(chunk, expected, stop)
            });
            let sent = join_all(sent).await;
            for (chunk, sent) in chunks.into_iter().zip(sent) {
                let name = self.name(&chunk.position.key());
                match sent? {
                    Sent::Done(value) => {
                        self.metrics.read.add(chunk.lines.iter().map(Line::length));
                        stop.account.add("lines read", chunk.lines.len() as u64);
                        values.insert(name, value);
                        if let Some(old) = &chunk.replaces {
                            self.forget(old, &mut values).await;
                        }
                        tail.accept(chunk);
                    }
                    Sent::Elsewhere(value) => {
                        self.moved(&mut tail, &chunk, name, value, &mut values)?
                    }
                    Sent::Stopped => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Continues at the current position of a file whose position was moved or lost.
    fn moved(
        &self,
        tail: &mut Tail,
        chunk: &Chunk,
        name: String,
        value: Option<Bytes>,
        values: &mut Values,
    ) -> Result<()> {
        let input = chunk.position.path.display();
        let had = values.remove(&name);
        let unreadable = |error| Error::unavailable("the input cannot be read").with_source(error);
        match value {
            Some(value) => {
                let position = parse(&name, &value)?;
                let read = position.offset;
                info!(%input, read, "another reader moved the position; continuing there");
                values.insert(name, value);
                tail.go_to(chunk, Some(position)).map_err(unreadable)
            }
            None if self.settings.start == Start::Beginning => {
                let read = had.and_then(|had| Some(parse(&name, &had).ok()?.offset));
                warn!(%input, read, "saved position lost; sending the whole input again");
                tail.go_to(chunk, None).map_err(unreadable)
            }
            None => {
                let read = had.and_then(|had| Some(parse(&name, &had).ok()?.offset));
                warn!(%input, read, "saved position lost; continuing where this reader is");
                Ok(())
            }
        }
    }

    /// Logs which inputs were never read.
    fn greet(&self, saved: &Saved) {
        let inputs = &self.settings.inputs;
        for input in inputs.texts() {
            let positions = saved.positions.values().map(|at| &at.path);
            let mut all = positions.chain(saved.paths.values().map(|(path, _)| path));
            if all.any(|path| inputs.covers(input, path)) {
                continue;
            }
            match self.settings.start {
                Start::Beginning => info!(
                    input,
                    "no saved position; sending the input from its beginning"
                ),
                Start::End => info!(
                    input,
                    "no saved position; sending lines appended from now on"
                ),
            }
        }
    }

    /// Logs that lines were sent to a stream which is not there any more.
    async fn check_stream(&self, saved: &Saved) {
        let stream = &self.settings.stream;
        let mut all = saved.positions.iter().filter(|(_, at)| at.offset > 0);
        if let Some((key, position)) = all.next()
            && let Err(error) = self.streams.stats(stream).await
            && error.kind() == ErrorKind::NotFound
        {
            warn!(
                input = %position.path.display(),
                %stream,
                read = position.offset,
                position = self.name(key),
                "saved position is ahead of its stream, which is missing; continuing there"
            );
        }
    }

    /// The name under which something of the stream's inputs is stored.
    fn name(&self, what: &str) -> String {
        format!("{POSITION}{}:{what}", self.settings.stream)
    }

    /// Everything that was saved for the stream, tried until there is an answer; `None` when the stop comes first.
    async fn load(&self, stop: &Stop) -> Result<Option<(Values, Saved)>> {
        let prefix = self.name("");
        let mut backoff = Backoff::new(AGAIN);
        let found = loop {
            match self.positions.sources(&prefix).await {
                Ok(found) => break found,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    self.metrics.backend_failed();
                    self.health.set(self.role, Some(error.chain()));
                    if !stop.sleep(backoff.next_delay()).await {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context(|| format!("list `{prefix}`")),
            }
        };
        let (mut values, mut saved) = (Values::new(), Saved::default());
        for (name, value) in found {
            let what = name.strip_prefix(&prefix).unwrap_or_default();
            if what.starts_with(FILE) {
                saved
                    .positions
                    .insert(what.to_owned(), parse(&name, &value)?);
            } else if !what.starts_with(START) && !what.contains(&format!(":{FILE}")) {
                let position = parse(&name, &value)?;
                saved
                    .paths
                    .insert(name.clone(), (PathBuf::from(what), position));
            }
            values.insert(name, value);
        }
        Ok(Some((values, saved)))
    }

    /// Saves when the inputs were looked at for the first time: older files begin at their end. Whether the stop came.
    async fn begin_inputs(&mut self, values: &mut Values, stop: &Stop) -> Result<bool> {
        for text in self.settings.inputs.texts().to_vec() {
            let name = self.start_name(&text);
            let mut backoff = Backoff::new(AGAIN);
            let value = loop {
                if let Some(value) = values.get(&name) {
                    break value.clone();
                }
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                let to = Bytes::from(now.as_secs().to_string());
                let step = self.step(name.clone(), None, to.clone());
                match self.positions.append_at(step).await {
                    Ok(AppendOutcome::Appended) => break to,
                    Ok(AppendOutcome::OffsetConflict(value)) => break value.unwrap_or(to),
                    Err(error) if error.kind() == ErrorKind::Unavailable => {
                        self.metrics.backend_failed();
                        self.health.set(self.role, Some(error.chain()));
                        if !stop.sleep(backoff.next_delay()).await {
                            return Ok(true);
                        }
                    }
                    Err(error) => return Err(error).context(|| format!("save `{name}`")),
                }
            };
            let seconds = std::str::from_utf8(&value)
                .ok()
                .and_then(|text| text.parse().ok());
            let seconds: u64 = seconds.ok_or_else(|| {
                Error::corrupt(format!(
                    "invalid moment in `{name}`; remove it with `towpath kv del`"
                ))
            })?;
            let moment = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(999);
            self.settings.inputs.set_ends_before(text, moment);
        }
        Ok(false)
    }

    /// A long input is shortened to its checksum and its end.
    fn start_name(&self, input: &str) -> String {
        let path = std::path::absolute(input).unwrap_or_else(|_| PathBuf::from(input));
        let path = path.display().to_string();
        let name = self.name(&format!("{START}{path}"));
        if name.len() <= 1_000 {
            return name;
        }
        let sum = crc32c::crc32c(path.as_bytes());
        let end = path.char_indices().rev().nth(99).map_or(0, |(at, _)| at);
        self.name(&format!("{START}{sum:08x}…{}", &path[end..]))
    }

    /// Removes a position that is not needed any more; one that cannot be removed now is removed by a later start.
    async fn forget(&self, name: &str, values: &mut Values) {
        let full = match name.starts_with(POSITION) {
            true => name.to_owned(),
            false => self.name(name),
        };
        if let Some(value) = values.remove(&full)
            && let Err(error) = self.positions.forget(&full, value).await
        {
            debug!(
                error = error.chain(),
                position = full,
                "position not removed"
            );
        }
    }

    fn step(&self, source: String, from: Option<Bytes>, to: Bytes) -> AppendAt {
        AppendAt {
            source,
            from,
            to,
            stream: self.settings.stream.clone(),
            entries: Vec::new(),
            dead: self.settings.too_long.clone(),
            rejected: Vec::new(),
        }
    }

    /// Appends the lines and moves the position in one step, tried until it is known to have happened.
    async fn send(&self, chunk: &Chunk, expected: Option<Bytes>, stop: &Stop) -> Result<Sent> {
        let mut backoff = Backoff::new(AGAIN);
        let path = &chunk.position.path;
        let moved = Bytes::from(serde_json::to_vec(&chunk.position).unwrap_or_default());
        loop {
            let name = self.name(&chunk.position.key());
            let mut step = self.step(name, expected.clone(), moved.clone());
            step.entries.reserve(chunk.lines.len());
            for line in &chunk.lines {
                match line {
                    Line::Whole(bytes) => step.entries.push(NewMessage::new(bytes.clone())),
                    Line::TooLong(start, length) => {
                        let limit = self.settings.limits.line;
                        step.rejected.push(too_long(path, start, *length, limit));
                    }
                }
            }
            let stream = &self.settings.stream;
            let begin = |entry| traces::append(stream, entry);
            let spans: Vec<_> = step.entries.iter_mut().filter_map(begin).collect();
            let stepped = self.positions.append_at(step).await;
            traces::settled(spans, &stepped);
            match stepped {
                Ok(AppendOutcome::Appended) => {
                    debug!(
                        input = %path.display(),
                        lines = chunk.lines.len(),
                        stream = %self.settings.stream,
                        "lines appended"
                    );
                    return Ok(Sent::Done(moved));
                }
                // An earlier try whose answer was lost.
                Ok(AppendOutcome::OffsetConflict(now)) if now.as_ref() == Some(&moved) => {
                    return Ok(Sent::Done(moved));
                }
                Ok(AppendOutcome::OffsetConflict(now)) => return Ok(Sent::Elsewhere(now)),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    log_failure("lines not appended; retrying", &error);
                    self.metrics.backend_failed();
                    self.health.set(self.role, Some(error.chain()));
                    if !stop.sleep(backoff.next_delay()).await {
                        return Ok(Sent::Stopped);
                    }
                }
                Err(error) => {
                    return Err(error).context(|| format!("send lines of `{}`", path.display()));
                }
            }
        }
    }

    /// Reports unreadable inputs in health and, once, in the log. Returns whether all inputs are readable.
    fn report(&self, tail: &Tail, logged: &mut BTreeSet<String>) -> bool {
        let problems: BTreeSet<String> = tail.problems().cloned().collect();
        for problem in problems.difference(logged) {
            warn!(problem, "input cannot be followed; trying again");
        }
        let text: Vec<&str> = problems.iter().take(3).map(String::as_str).collect();
        let text = (!text.is_empty()).then(|| text.join("; "));
        let is_well = text.is_none();
        self.health.set(self.role, text);
        let missing = tail
            .missing()
            .map(|path| format!("input `{}` is missing", path.display()));
        self.health.note(self.role, missing.collect());
        *logged = problems;
        is_well
    }

    /// Sets the series of the files that are at an input, and removes those of files that are not any more.
    fn show(&self, tail: &Tail, shown: &mut BTreeSet<String>) {
        let mut now = BTreeMap::new();
        for (path, read, size) in tail.progress() {
            now.insert(path.display().to_string(), (read, size));
        }
        for gone in shown.iter().filter(|input| !now.contains_key(*input)) {
            self.metrics.input_gone(gone);
        }
        for (input, (read, size)) in &now {
            self.metrics.input(input, *read, *size);
        }
        *shown = now.into_keys().collect();
    }
}

fn parse(name: &str, value: &[u8]) -> Result<Position> {
    serde_json::from_slice(value).map_err(|error| {
        let text = format!(
            "invalid position in `{name}`; remove it with `towpath kv del` to read the file from its beginning"
        );
        Error::corrupt(text).with_source(error)
    })
}

/// The beginning of a line over the limit, with its outcome.
fn too_long(path: &Path, start: &[u8], length: u64, limit: usize) -> NewMessage {
    warn!(input = %path.display(), length, limit, "line over the limit set aside");
    let mut message = NewMessage::new(start.to_vec());
    let reason = format!("the line has {length} bytes, and `lines.max_line` is {limit}");
    message.headers.set(REASON, reason);
    message.headers.set("input", path.display().to_string());
    message
}
