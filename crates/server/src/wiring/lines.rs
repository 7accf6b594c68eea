//! The lines app's roles, from their configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use towpath_core::backend::Backend;
use towpath_core::port::stream::{Stream, Trim};
use towpath_core::{ConsumerId, Error, ErrorKind, GroupName, QueueName, Result, StreamName, retry};

use super::Role;
use super::backend_pool::BackendPool;
use super::process::{Process, condition};
use super::public::Public;
use crate::apps::lines::{Backpressure, Reader, Settings, routes};
use crate::config::Lines as Config;
use crate::documents::Part;
use crate::source::{Inputs, Limits, Own};
use crate::telemetry::Need;
use towpath::consumer::{Consumer, GroupMember, StreamConsumer};
use towpath::disk::folder_of;
use towpath::pump::{BatchSize, Pump, Work};
use towpath::sink::{FileSink, LineFormat};
use towpath::supervisor::{OnFailure, Stage};

/// The roles' names in health, metrics and the account.
const READER: &str = "lines.reader";
const WRITER: &str = "lines.writer";

/// The reference system's input.
const INPUT: &str = "/data/input.txt";

/// The output's name beside the input.
const OUTPUT: &str = "output.txt";

/// Most bytes of lines in one step.
const CHUNK_BYTES: usize = 1 << 20;

/// Files in `data.dir` that no input pattern matches: stores, databases and keys.
const PRIVATE: [&str; 10] = [
    "LOCK",
    "accounts.db",
    "admin.token",
    "checkpoint",
    "controller.db",
    "fleet-agent.json",
    "fleet-worker.json",
    "fleet.key",
    "log",
    "quarantine",
];

/// Interval of trimming finished entries.
const TEND: Duration = Duration::from_secs(1);

/// Delays of a line that the sink could not take; the file sink has none of its own.
const RETRY: retry::Policy =
    retry::Policy::forever(Duration::from_millis(100), Duration::from_secs(5));

/// The app on its backend.
pub(super) struct Lines {
    backend: Backend,
    stream: Arc<dyn Stream>,
    name: StreamName,
    dead: QueueName,
}

impl Lines {
    /// Opens the app's backend when one of its roles runs. In `up` that is when there is an input.
    pub(super) async fn open(
        process: &Process<'_>,
        pool: &mut BackendPool,
    ) -> Result<Option<Self>> {
        let config = &process.config.lines;
        let is_asked = config.input.is_some() || !config.inputs.is_empty();
        let runs = [Role::LinesReader, Role::LinesWriter]
            .iter()
            .any(|role| process.runs(*role));
        if !runs || process.is_everything() && !is_asked {
            return Ok(None);
        }
        let backend = pool.open(&config.backend).await?;
        Ok(Some(Self {
            stream: backend.require_stream("lines")?,
            name: StreamName::new(&config.stream)?,
            dead: QueueName::new(format!("{}.dead", config.stream))?,
            backend,
        }))
    }

    /// Starts its tasks, and adds its routes to the public listener where no other app has them.
    pub(super) fn start(self, process: &mut Process<'_>, public: &mut Public) -> Result<()> {
        if process.runs(Role::LinesReader) {
            self.readers(process)?;
        }
        if process.runs(Role::LinesWriter) {
            self.writer(process)?;
        }
        if !process.runs(Role::IngestApi) {
            let role = if process.runs(Role::LinesReader) {
                READER
            } else {
                WRITER
            };
            let output = process.runs(Role::LinesWriter).then(|| output(process));
            let health = process.health.clone();
            let metrics = process.metrics.clone();
            let routes = routes(
                self.backend.clone(),
                metrics,
                health,
                [READER, WRITER],
                output,
            );
            public.add(role, routes, &[Part::Lines], &[]);
        }
        Ok(())
    }

    fn readers(&self, process: &mut Process<'_>) -> Result<()> {
        let config = &process.config.lines;
        let mut own = Own {
            outputs: Vec::new(),
            private: PRIVATE
                .map(|name| process.config.data_dir.join(name))
                .to_vec(),
        };
        if process.runs(Role::LinesWriter) || config.output.is_some() {
            own.outputs.push(output(process));
        }
        let inputs = Inputs::new(inputs(config), own);
        inputs.check().map_err(Error::invalid)?;
        let settings = Settings {
            inputs,
            stream: self.name.clone(),
            too_long: self.dead.clone(),
            start: config.start,
            limits: Limits {
                line: config.max_line,
                lines: config.batch,
                bytes: CHUNK_BYTES,
                quiet: config.quiet,
            },
            rotate_wait: config.rotate_wait,
            forget_after: config.forget_after,
            linger: config.linger,
            poll: config.poll,
            host: host(),
        };
        let reader = Reader {
            role: READER,
            settings,
            positions: self.backend.require_source_offsets(READER)?,
            streams: Arc::clone(&self.stream),
            health: process.health.clone(),
            metrics: process.metrics.lines(),
            backpressure: process
                .runs(Role::LinesWriter)
                .then(|| self.backpressure(config))
                .transpose()?,
        };
        process.health.set(READER, None);
        process.needs(READER, &self.backend, Need::Accepts);
        let supervisor = &mut process.supervisor;
        supervisor.start(READER, Stage::Source, OnFailure::Restart, move |stop| {
            let reader = reader.clone();
            async move { reader.run(&stop).await }
        });
        Ok(())
    }

    fn backpressure(&self, config: &Config) -> Result<Backpressure> {
        let group = GroupName::new(&config.group)?;
        let stream = Arc::clone(&self.stream);
        Ok(Backpressure::new(stream, self.name.clone(), group))
    }

    fn writer(&self, process: &mut Process<'_>) -> Result<()> {
        let config = &process.config.lines;
        let output = output(process);
        let consumer = match &config.consumer {
            Some(name) => name.clone(),
            None => consumer_of(&output),
        };
        let place = GroupMember {
            stream: self.name.clone(),
            group: GroupName::new(&config.group)?,
            consumer: ConsumerId::new(consumer)?,
            dead: self.dead.clone(),
            attempts: u32::MAX,
            is_ordered: true,
        };
        process.health.set(WRITER, None);
        process.health.works_on(WRITER, self.name.as_str());
        process.needs(WRITER, &self.backend, Need::Answers);
        process.metrics.watch_disk(folder_of(&output));
        let path = output.clone();
        let sink = FileSink::new(output, LineFormat::Raw)
            .rotating(config.rotation)
            .with_mode(config.output_mode)
            .synced(config.fsync)
            .above(process.floor(&self.backend));
        process.stalls.add("output", &path, sink.waits());
        let sink = Arc::new(sink);
        let dead = self.backend.require_queue(WRITER)?;
        let metrics = process
            .metrics
            .pump(self.name.as_str(), Arc::clone(&process.clock));
        let (stream, health) = (Arc::clone(&self.stream), process.health.clone());
        let (batch, claim_after) = (config.batch, config.claim_after);
        let written = process.metrics.lines().written;
        let supervisor = &mut process.supervisor;
        supervisor.start(WRITER, Stage::Deliver, OnFailure::Restart, move |stop| {
            let (stream, dead) = (Arc::clone(&stream), dead.clone());
            let written = written.clone();
            let done = Box::new(move |lengths: &mut dyn Iterator<Item = u64>| written.add(lengths));
            let consumer = StreamConsumer::new(stream, dead, place.clone(), claim_after, done);
            let consumer: Arc<dyn Consumer> = Arc::new(consumer);
            let (sink, health) = (Arc::clone(&sink), health.clone());
            let pump = Pump {
                consumer: Arc::clone(&consumer),
                work: Work::Batches(sink, BatchSize::fixed(batch)),
                sink_name: "file",
                retry: RETRY,
                pause: Duration::ZERO,
                metrics: metrics.clone(),
                condition: condition(&health, WRITER, WRITER),
            };
            async move {
                pump.run(&stop).await?;
                // Entries released at the end are available to others at once.
                consumer.disconnect().await.map(drop)
            }
        });
        if config.trim {
            let (stream, name) = (Arc::clone(&self.stream), self.name.clone());
            let supervisor = &mut process.supervisor;
            supervisor.start(
                "lines.trim",
                Stage::Maintain,
                OnFailure::Restart,
                move |stop| {
                    let (stream, name) = (Arc::clone(&stream), name.clone());
                    async move {
                        loop {
                            if !stop.sleep(TEND).await {
                                return Ok(());
                            }
                            match stream.trim(&name, Trim::Finished).await {
                                Ok(count) => stop.account.add("trimmed", count),
                                Err(error) if error.kind() == ErrorKind::NotFound => {}
                                Err(error) => return Err(error),
                            }
                        }
                    }
                },
            );
        }
        Ok(())
    }
}

/// Followed paths and patterns.
fn inputs(config: &Config) -> Vec<String> {
    let first = config.input.iter().map(|path| path.display().to_string());
    let all: Vec<String> = first.chain(config.inputs.iter().cloned()).collect();
    if all.is_empty() {
        vec![INPUT.to_owned()]
    } else {
        all
    }
}

/// The writer's output. `OUTPUT_PATH` is the ingest worker's where that runs too.
fn output(process: &Process<'_>) -> PathBuf {
    let config = &process.config.lines;
    let is_of_ingest = |output: &PathBuf| {
        process.runs(Role::IngestWorker) && *output == process.config.output_path()
    };
    let output = config.output.clone();
    output.filter(|one| !is_of_ingest(one)).unwrap_or_else(|| {
        let input = inputs(config).remove(0);
        Path::new(&input).with_file_name(OUTPUT)
    })
}

/// The name of this host.
pub fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().replace(char::is_whitespace, "-")
}

/// The same for every process that writes this output on this host, and for no other.
fn consumer_of(output: &Path) -> String {
    let path = std::path::absolute(output).unwrap_or_else(|_| output.to_owned());
    let sum = crc32c::crc32c(path.as_os_str().as_encoded_bytes());
    format!("{}-{sum:08x}", host())
}
