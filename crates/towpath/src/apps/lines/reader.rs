//! The reader: follows a file and appends its lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use towpath_core::port::Stream;
use towpath_core::port::positions::{Positions, Step, Stepped};
use towpath_core::{Error, ErrorKind, NewMessage, QueueName, Result, ResultExt, StreamName, retry};
use tracing::{info, warn};

use super::Pace;
use crate::source::{Chunk, Limits, Line, Position, Tail, Wake};
use crate::supervisor::Stop;
use crate::telemetry::{Health, LineMetrics};

/// How an append that met an unavailable backend, or a file that cannot be read, is tried again.
const AGAIN: retry::Policy =
    retry::Policy::forever(Duration::from_millis(50), Duration::from_secs(5));

/// Before a stream and a path: how far the file was read.
const POSITION: &str = "lines.position:";

/// The header that says why a line is in the queue of those that were not sent.
const REASON: &str = "reason";

/// Where a file begins that was never read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With its first line.
    Beginning,
    /// With the first line that is written from now on.
    End,
}

/// What is followed, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where its lines go.
    pub stream: StreamName,
    /// Where lines over the limit go.
    pub too_long: QueueName,
    /// Where to begin.
    pub start: Start,
    /// Bounds of a batch.
    pub limits: Limits,
    /// How long more is waited for after a pause.
    pub linger: Duration,
    /// How often a file is looked at that has nothing new.
    pub poll: Duration,
}

/// Follows one file.
#[derive(Clone)]
pub struct Reader {
    /// The role's name in health.
    pub role: &'static str,
    /// The file.
    pub path: PathBuf,
    /// How it is followed.
    pub settings: Settings,
    /// Takes lines, and moves the position in the same step.
    pub positions: Arc<dyn Positions>,
    /// Asked whether what was read before is still behind the position.
    pub streams: Arc<dyn Stream>,
    /// Told what is wrong.
    pub health: Health,
    /// Told what was read, and how far the file is.
    pub metrics: LineMetrics,
    /// Waited for, when the writer is in this process.
    pub pace: Option<Pace>,
}

/// How following a file ended.
enum Followed {
    /// The stop came.
    Stopped,
    /// The saved position is not the one that this reader had moved to, which is this.
    Elsewhere(Option<Position>),
}

/// What became of a chunk.
enum Sent {
    /// Its lines are in the stream.
    Done,
    /// Another reader moved the position.
    Elsewhere,
    /// The stop came first.
    Stopped,
}

impl Reader {
    /// Follows the file until the stop is requested.
    ///
    /// # Errors
    /// Those of the backend that trying again cannot mend.
    pub async fn run(self, stop: &Stop) -> Result<()> {
        let key = self.key();
        let input = self.path.display().to_string();
        let mut had: Option<Position> = None;
        while !stop.is_requested() {
            let Some((value, mut saved)) = self.load(&key, stop).await? else {
                return Ok(());
            };
            match (&saved, had.take(), self.settings.start) {
                (None, Some(position), Start::Beginning) => {
                    let read = position.offset;
                    warn!(
                        input,
                        read, "saved position lost; sending the whole input again"
                    );
                }
                (None, Some(position), Start::End) => {
                    let read = position.offset;
                    warn!(
                        input,
                        read, "saved position lost; continuing where this reader is"
                    );
                    saved = Some(position);
                }
                (None, None, Start::Beginning) => {
                    info!(
                        input,
                        "no saved position; sending the input from its beginning"
                    );
                }
                (None, None, Start::End) => {
                    info!(
                        input,
                        "no saved position; sending what is appended from now on"
                    );
                }
                (Some(position), Some(_), _) => {
                    let read = position.offset;
                    info!(
                        input,
                        read, "another reader moved the position; continuing there"
                    );
                }
                (Some(position), None, _) => self.check_stream(&key, position).await,
            }
            match self.follow(&key, (value, saved), stop).await? {
                Followed::Stopped => return Ok(()),
                Followed::Elsewhere(position) => had = Some(position.unwrap_or_default()),
            }
        }
        Ok(())
    }

    /// Logs that lines were sent to a stream which is not there any more.
    async fn check_stream(&self, key: &str, position: &Position) {
        let stream = &self.settings.stream;
        if let Err(error) = self.streams.stats(stream).await
            && error.kind() == ErrorKind::NotFound
            && position.offset > 0
        {
            warn!(
                input = %self.path.display(),
                %stream,
                read = position.offset,
                position = key,
                "saved position is ahead of its stream, which is missing; continuing there"
            );
        }
    }

    /// The key of the position. A long path is shortened to its checksum and its end.
    fn key(&self) -> String {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        let path = path.display().to_string();
        let key = format!("{POSITION}{}:{path}", self.settings.stream);
        if key.len() <= 1_000 {
            return key;
        }
        let sum = crc32c::crc32c(path.as_bytes());
        let end: String = path
            .chars()
            .rev()
            .take(100)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        format!("{POSITION}{}:{sum:08x}…{end}", self.settings.stream)
    }

    /// The saved position with its value, tried until there is an answer; `None` when the stop comes first.
    async fn load(
        &self,
        key: &str,
        stop: &Stop,
    ) -> Result<Option<(Option<Bytes>, Option<Position>)>> {
        let mut attempt = 0;
        loop {
            match self.positions.position(key).await {
                Ok(None) => return Ok(Some((None, None))),
                Ok(Some(value)) => {
                    let position = serde_json::from_slice(&value).map_err(|error| {
                        let text = format!("`{key}` holds no position; remove it with `towpath kv del` to read the file from its beginning");
                        Error::corrupt(text).with_source(error)
                    })?;
                    return Ok(Some((Some(value), Some(position))));
                }
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    self.metrics.backend_failed();
                    self.health.set(self.role, Some(error.chain()));
                    attempt += 1;
                    if rest(stop, attempt).await {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error).context(|| format!("read `{key}`")),
            }
        }
    }

    /// Sends chunk after chunk, until the stop comes or the saved position is another one.
    async fn follow(
        &self,
        key: &str,
        (mut value, mut saved): (Option<Bytes>, Option<Position>),
        stop: &Stop,
    ) -> Result<Followed> {
        if saved.is_none() && self.settings.start == Start::End {
            saved = Tail::end(&self.path).unwrap_or_default();
        }
        let mut reached = saved.clone();
        let mut tail = Tail::new(self.path.clone(), self.settings.limits, saved);
        let (wake, mut attempt) = (Wake::beside(&self.path), 0);
        let mut is_missing = false;
        while !stop.is_requested() {
            // Files are read on threads of their own; the tail comes back with what it found.
            let (back, found) = tokio::task::spawn_blocking(move || {
                let found = tail.read();
                (tail, found)
            })
            .await
            .map_err(|panic| Error::unavailable("reading the input panicked").with_source(panic))?;
            tail = back;
            self.show(&tail);
            let chunk = match found {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    attempt = 0;
                    self.health.set(self.role, None);
                    let misses = tail.progress().is_none() && !self.path.exists();
                    if misses && !is_missing {
                        warn!(input = %self.path.display(), "input file missing; waiting for it");
                    }
                    is_missing = misses;
                    tokio::select! {
                        () = wake.changed() => tokio::select! {
                            () = tokio::time::sleep(self.settings.linger) => {}
                            () = stop.requested() => {}
                        },
                        () = tokio::time::sleep(self.settings.poll) => {}
                        () = stop.requested() => {}
                    }
                    continue;
                }
                Err(error) => {
                    let text = format!("input `{}` cannot be read: {error}", self.path.display());
                    warn!(%error, input = %self.path.display(), "the input cannot be read, trying again");
                    self.metrics.input_failed();
                    self.health.set(self.role, Some(text));
                    attempt += 1;
                    if rest(stop, attempt).await {
                        return Ok(Followed::Stopped);
                    }
                    continue;
                }
            };
            attempt = 0;
            if let Some(pace) = &self.pace {
                tokio::select! {
                    () = pace.wait(chunk.lines.len() as u64) => {}
                    () = stop.requested() => return Ok(Followed::Stopped),
                }
            }
            let moved = Bytes::from(serde_json::to_vec(&chunk.position).unwrap_or_default());
            match self
                .send(key, value.clone(), moved.clone(), &chunk, stop)
                .await?
            {
                Sent::Done => {
                    self.metrics.read.add(chunk.lines.iter().map(Line::length));
                    stop.account.add("lines read", chunk.lines.len() as u64);
                    self.health.set(self.role, None);
                    reached = Some(chunk.position.clone());
                    tail.accept(chunk.position);
                    value = Some(moved);
                }
                Sent::Elsewhere => return Ok(Followed::Elsewhere(reached)),
                Sent::Stopped => return Ok(Followed::Stopped),
            }
        }
        Ok(Followed::Stopped)
    }

    /// Appends the lines and moves the position in one step, tried until it is known to have happened.
    async fn send(
        &self,
        key: &str,
        expected: Option<Bytes>,
        moved: Bytes,
        chunk: &Chunk,
        stop: &Stop,
    ) -> Result<Sent> {
        let mut attempt = 0;
        loop {
            let mut step = Step {
                source: key.to_owned(),
                from: expected.clone(),
                to: moved.clone(),
                stream: self.settings.stream.clone(),
                entries: Vec::with_capacity(chunk.lines.len()),
                dead: self.settings.too_long.clone(),
                set_aside: Vec::new(),
            };
            for line in &chunk.lines {
                match line {
                    Line::Whole(bytes) => step.entries.push(NewMessage::new(bytes.clone())),
                    Line::TooLong(start, length) => {
                        let limit = self.settings.limits.line;
                        step.set_aside
                            .push(too_long(&self.path, start, *length, limit));
                    }
                }
            }
            match self.positions.step(step).await {
                Ok(Stepped::Done) => return Ok(Sent::Done),
                // An earlier try whose answer was lost.
                Ok(Stepped::Elsewhere(now)) if now.as_ref() == Some(&moved) => {
                    return Ok(Sent::Done);
                }
                Ok(Stepped::Elsewhere(_)) => return Ok(Sent::Elsewhere),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    attempt += 1;
                    warn!(
                        error = error.chain(),
                        attempt, "lines are not sent, trying again"
                    );
                    self.metrics.backend_failed();
                    self.health.set(self.role, Some(error.chain()));
                    if rest(stop, attempt).await {
                        return Ok(Sent::Stopped);
                    }
                }
                Err(error) => {
                    return Err(error)
                        .context(|| format!("send lines of `{}`", self.path.display()));
                }
            }
        }
    }

    fn show(&self, tail: &Tail) {
        if let Some((read, size)) = tail.progress() {
            self.metrics
                .input(&self.path.display().to_string(), read, size);
        }
    }
}

/// The beginning of a line over the limit, with what became of it.
fn too_long(path: &Path, start: &[u8], length: u64, limit: usize) -> NewMessage {
    warn!(input = %path.display(), length, limit, "a line is over the limit and was set aside");
    let mut message = NewMessage::new(start.to_vec());
    let reason = format!("the line has {length} bytes, and `lines.max_line` is {limit}");
    message.headers.set(REASON, reason);
    message.headers.set("input", path.display().to_string());
    message
}

/// Waits before the next attempt. True when the stop comes first.
async fn rest(stop: &Stop, attempt: u32) -> bool {
    let delay = AGAIN.next_delay(attempt, &mut rand::rng());
    tokio::select! {
        () = tokio::time::sleep(delay) => false,
        () = stop.requested() => true,
    }
}
