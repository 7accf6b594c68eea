//! A whole file through a stream into another one, with the reader and the writer of the lines app.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use towpath_core::message::MAX_PAYLOAD_BYTES;
use towpath_core::port::stream::Trim;
use towpath_core::{ConsumerId, GroupName, MessageId, QueueName, Result, StreamName, retry};

use super::lines::host;
use crate::apps::lines::{Backpressure, Reader, Settings, Start};
use crate::source::{Inputs, Limits};
use crate::stores::{clock, open};
use crate::telemetry::{Health, Metrics};
use towpath::consumer::{GroupMember, StreamConsumer};
use towpath::pump::{BatchSize, Pump, Work};
use towpath::sink::{FileSink, LineFormat};
use towpath::supervisor::Stop;

/// Most lines and bytes in one step.
const LINES: usize = 2_000;
const BYTES: usize = 1 << 20;

/// Interval of progress reports.
const TELL: Duration = Duration::from_millis(100);

/// Longer than any copy takes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A copy that is to be made.
pub struct Copy {
    /// The URL of the backend whose stream is used.
    pub via: String,
    /// The file that is read.
    pub input: PathBuf,
    /// The file that is appended to.
    pub output: PathBuf,
    /// Number of lines.
    pub lines: u64,
}

impl Copy {
    /// Longest line that a copy takes.
    pub const LINE_BYTES: usize = MAX_PAYLOAD_BYTES;

    /// Makes it, and tells how many lines were read and written so far.
    ///
    /// The stream has a name of its own and is emptied again. A backend without positions of sources is refused.
    ///
    /// # Errors
    /// Those of the backend, and of a reader or writer that cannot continue.
    pub async fn run(self, mut tell: impl FnMut(u64, u64)) -> Result<()> {
        let backend = open(&self.via).await?;
        let stream = backend.require_stream("lines copy")?;
        let name = StreamName::new(format!("lines.copy-{}", MessageId::new()))?;
        let dead = QueueName::new(format!("{name}.dead"))?;
        let (metrics, health, token) = (Metrics::new(), Health::new(), CancellationToken::new());
        let group = GroupName::new("copy")?;
        let lines = metrics.lines();
        let (read, written) = (lines.read.clone(), lines.written.clone());
        let positions = backend.require_source_offsets("lines copy")?;
        let reader = Reader {
            role: "lines copy",
            settings: Settings {
                inputs: Inputs::only(&self.input),
                stream: name.clone(),
                too_long: dead.clone(),
                start: Start::Beginning,
                limits: Limits {
                    line: Self::LINE_BYTES,
                    lines: LINES,
                    bytes: BYTES,
                    quiet: Some(Duration::ZERO),
                },
                rotate_wait: FOREVER,
                forget_after: FOREVER,
                linger: Duration::ZERO,
                poll: TELL,
                host: host(),
            },
            positions: Arc::clone(&positions),
            streams: Arc::clone(&stream),
            health,
            metrics: lines,
            backpressure: Some(Backpressure::new(
                Arc::clone(&stream),
                name.clone(),
                group.clone(),
            )),
        };
        let place = GroupMember {
            stream: name.clone(),
            group,
            consumer: ConsumerId::unique("copy")?,
            dead,
            attempts: u32::MAX,
            is_ordered: true,
        };
        let dead_letters = backend.require_queue("lines copy")?;
        let minute = Duration::from_secs(60);
        let counted = written.clone();
        let done = Box::new(move |lengths: &mut dyn Iterator<Item = u64>| counted.add(lengths));
        let consumer = StreamConsumer::new(Arc::clone(&stream), dead_letters, place, minute, done);
        let pump = Pump {
            consumer: Arc::new(consumer),
            work: Work::Batches(
                Arc::new(FileSink::new(self.output.clone(), LineFormat::Raw)),
                BatchSize::fixed(LINES),
            ),
            sink_name: "file",
            retry: retry::Policy::default(),
            pause: Duration::ZERO,
            metrics: metrics.pump(name.as_str(), clock()),
            condition: Box::new(|_, _| ()),
        };
        let stop = Stop::when(token.clone());
        let progress = async {
            let mut trimmed = 0;
            while written.lines() < self.lines {
                tokio::time::sleep(TELL).await;
                tell(read.lines(), written.lines());
                if written.lines() - trimmed > 50_000 {
                    trimmed = written.lines();
                    stream.trim(&name, Trim::Finished).await?;
                }
            }
            token.cancel();
            Ok(())
        };
        // The reader's position and the stream are of no use afterwards.
        tokio::try_join!(reader.run(&stop), pump.run(&stop), progress)?;
        tell(read.lines(), written.lines());
        let prefix = format!("lines.position:{name}:");
        for (source, last) in positions.sources(&prefix).await? {
            positions.forget(&source, last).await?;
        }
        if self.lines > 0 {
            stream.trim(&name, Trim::KeepLast(0)).await?;
        }
        backend.lifecycle.close().await
    }

    /// The journal that the writer leaves beside the output.
    pub fn journal(output: &Path) -> PathBuf {
        FileSink::journal_of(output)
    }
}
