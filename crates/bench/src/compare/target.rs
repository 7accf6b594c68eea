//! A target: opened once, measured round after round.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use towpath_core::backend::Backend;
use towpath_core::{Error, Result};

use super::server::Server;
use crate::api::{self, BENCH_QUEUE, BenchApi};
use crate::baseline::{self, Baseline};
use crate::http::Post;
use crate::limit::Limit;
use crate::line::Line;
use crate::load::{Load, panicked};
use crate::measure::Measurement;
use crate::orders::BenchOrders;
use crate::payload::{Payloads, check};
use crate::workload::{Kind, Workload};
use crate::{Row, disk, durability};
use towpath_server::wiring;

/// The disk itself: each caller as if it had the disk for itself.
const DISK: &str = "disk";

/// In front of a URL: the server without any of our code.
const BARE: &str = "bare:";

/// In front of a URL: the orders app on it.
const ORDERS: &str = "orders:";

/// Something to measure.
pub(super) struct Target {
    /// As the user wrote it, without secrets.
    pub(super) name: String,
    /// The meaning of its acknowledgement, as the target itself states it.
    pub(super) durability: String,
    subject: Subject,
}

enum Subject {
    Disk(PathBuf),
    Line {
        line: Arc<Line>,
        /// Closed in the end.
        backends: Vec<Backend>,
        api: Option<BenchApi>,
        /// Reads the CPU time of the server, where there is one that reports it.
        server: Option<Server>,
    },
}

/// Options that all targets share.
pub(super) struct Options<'a> {
    /// Backend of the keys of orders, where the broker has none.
    pub(super) keys: Option<&'a str>,
    /// The servers' processes, where they are known.
    pub(super) server_pids: &'a [u32],
}

impl Options<'_> {
    fn server(&self, baseline: Arc<dyn Baseline>) -> Server {
        match self.server_pids {
            [] => Server::Itself(baseline),
            pids => Server::Processes(pids.to_vec()),
        }
    }

    /// Nothing for a store without a server.
    async fn server_at(&self, url: &str) -> Option<Server> {
        let baseline = baseline::connect(url).await.ok()?;
        Some(self.server(baseline))
    }
}

/// One round: the clients' figures, and CPU microseconds of the server per message.
pub(super) struct Round {
    pub(super) row: Row,
    pub(super) server_cpu_us: Option<f64>,
}

impl Target {
    /// Opens what `text` names; `folder` is for the disk and for stores without a folder.
    pub(super) async fn open(
        text: &str,
        options: &Options<'_>,
        folder: &Path,
        number: usize,
    ) -> Result<Self> {
        if text == DISK {
            return Ok(Self {
                name: text.to_owned(),
                durability: "fdatasync of 4 KiB, one after the other".to_owned(),
                subject: Subject::Disk(folder.to_owned()),
            });
        }
        if let Some(url) = text.strip_prefix(BARE) {
            let baseline = baseline::connect(url).await?;
            baseline.clear().await?;
            // The server says it through the backend that knows it.
            let backend = wiring::open(url).await?;
            let (durability, name) = (durability(&backend).await?, backend.url.clone());
            backend.lifecycle.close().await?;
            return Ok(Self {
                name: format!("{BARE}{name}"),
                durability,
                subject: Subject::Line {
                    line: Arc::new(Line::Bare(Arc::clone(&baseline))),
                    backends: Vec::new(),
                    api: Some(api::bare(Arc::clone(&baseline)).await?),
                    server: Some(options.server(baseline)),
                },
            });
        }
        if let Some(url) = text.strip_prefix(ORDERS) {
            return Self::orders(url, options, &format!("{}/{number}", folder.display())).await;
        }
        let (backend, name, url) = open(text, &format!("{}/{number}", folder.display())).await?;
        Ok(Self {
            name,
            durability: durability(&backend).await?,
            subject: Subject::Line {
                line: Arc::new(Line::open(&backend, BENCH_QUEUE).await?),
                api: Some(api::ingest(&backend).await?),
                server: options.server_at(&url).await,
                backends: vec![backend],
            },
        })
    }

    /// The orders app on a broker; the keys are on `keys` where the broker has none.
    async fn orders(url: &str, options: &Options<'_>, folder: &str) -> Result<Self> {
        let (broker, name, url) = open(url, folder).await?;
        let keys = match options.keys {
            Some(keys) if broker.kv.is_none() => Some(wiring::open(keys).await?),
            _ => None,
        };
        let mut stated = durability(&broker).await?;
        if let Some(keys) = &keys {
            stated = format!("{stated}; keys: {}", durability(keys).await?);
        }
        if broker.kv.is_none() && keys.is_none() {
            let broker = broker.descriptor.name;
            return Err(Error::invalid(format!(
                "backend `{broker}` has no keys; name one that has them with `--keys`"
            )));
        }
        let app = BenchOrders::open(&broker, keys.as_ref().unwrap_or(&broker)).await?;
        Ok(Self {
            name: format!("{ORDERS}{name}"),
            durability: stated,
            subject: Subject::Line {
                line: Arc::new(Line::Orders(Box::new(app))),
                api: None,
                server: options.server_at(&url).await,
                backends: std::iter::once(broker).chain(keys).collect(),
            },
        })
    }

    /// One round of a workload, checked for losses and duplicates afterwards; nothing when the target cannot do it.
    pub(super) async fn run(
        &self,
        workload: Workload,
        payloads: &Arc<Payloads>,
        limit: impl Fn() -> Limit,
    ) -> Result<Option<Round>> {
        let (kind, callers, batch) = workload.shape();
        let (line, api, server) = match &self.subject {
            Subject::Disk(_) if kind != Kind::Publish => return Ok(None),
            Subject::Disk(folder) => {
                let (folder, limit) = (folder.clone(), limit());
                let row = tokio::task::spawn_blocking(move || {
                    disk::measure(Duration::ZERO, &folder, &limit)
                });
                let row = row.await.map_err(panicked)?.map_err(|error| {
                    Error::unavailable("the disk cannot be measured").with_source(error)
                })?;
                return Ok(Some(Round {
                    row: times(row, callers * batch),
                    server_cpu_us: None,
                }));
            }
            Subject::Line {
                line, api, server, ..
            } => (line, api, server),
        };
        let load = Load {
            line: Arc::clone(line),
            payloads: Arc::clone(payloads),
            callers,
            batch,
        };
        let post = match kind {
            Kind::Http => match api {
                Some(api) => Some(Post::connect(api.address, callers, batch, payloads).await?),
                None => return Ok(None),
            },
            _ => None,
        };
        let before = used(server.as_ref()).await;
        let measurement = Measurement::start("compare", &self.durability, callers, batch);
        let limit = limit();
        let mut outcome = match (kind, post) {
            (Kind::Cycle, _) => load.cycle(&limit).await?,
            (Kind::HandOver, _) => load.hand_over(&limit, Duration::ZERO).await?,
            (_, Some(post)) => post.run(&limit).await?,
            (_, None) => load.publish(&limit, Duration::ZERO).await?,
        };
        let messages = outcome.messages();
        let latencies = std::mem::take(&mut outcome.latencies);
        let mut row = measurement.finish(messages, latencies, outcome.ended);
        let server_cpu_us = match (before, used(server.as_ref()).await) {
            (Some(before), Some(after)) => {
                Some(per_message(after.saturating_sub(before), messages))
            }
            _ => None,
        };
        outcome.seen.extend(load.drain().await?.seen);
        (row.lost, row.duplicated) = check(&outcome.sent, outcome.seen);
        Ok(Some(Round { row, server_cpu_us }))
    }

    /// Stops the servers and backends of the target.
    pub(super) async fn close(self) -> Result<()> {
        let Subject::Line {
            line,
            backends,
            api,
            ..
        } = self.subject
        else {
            return Ok(());
        };
        if let Some(api) = api {
            api.stop().await?;
        }
        if let Line::Bare(baseline) = &*line {
            baseline.clear().await?;
        }
        for backend in backends {
            backend.lifecycle.close().await?;
        }
        Ok(())
    }
}

/// Opens a backend by its URL, an embedded store without a folder in `folder`. Returns its name in the report and its
/// complete URL too.
async fn open(text: &str, folder: &str) -> Result<(Backend, String, String)> {
    let own = text
        .strip_prefix("embedded:")
        .filter(|rest| rest.is_empty() || rest.starts_with('?'));
    let url = own.map_or_else(
        || text.to_owned(),
        |rest| format!("embedded:{folder}{rest}"),
    );
    let backend = wiring::open(&url).await?;
    let name = if own.is_some() { text } else { &backend.url };
    let name = name.to_owned();
    Ok((backend, name, url))
}

async fn used(server: Option<&Server>) -> Option<Duration> {
    server?.used().await
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn per_message(cpu: Duration, messages: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / messages.max(1) as f64
}

/// The row multiplied by the number of disks.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn times(row: Row, disks: usize) -> Row {
    Row {
        per_second: row.per_second * disks as f64,
        ..row
    }
}
