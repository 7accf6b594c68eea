//! A target: opened once, measured round after round.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use towpath_core::backend::Backend;
use towpath_core::{Error, Result};

use super::super::http::Post;
use super::super::limit::Limit;
use super::super::line::Line;
use super::super::load::{Load, panicked};
use super::super::measure::Measurement;
use super::super::payload::{Payloads, check};
use super::super::{Row, disk, durability};
use super::workload::{Kind, Workload};
use crate::wiring::{self, BENCH_QUEUE, Baseline, BenchApi};

/// The disk itself: each caller as if it had the disk for itself.
const DISK: &str = "disk";

/// In front of a URL: the server without any of our code.
const BARE: &str = "bare:";

/// Something to measure.
pub(super) struct Target {
    /// As the user wrote it, without secrets.
    pub(super) name: String,
    /// What its acknowledgement means, as the target itself says.
    pub(super) durability: String,
    subject: Subject,
}

enum Subject {
    Disk(PathBuf),
    Line {
        line: Arc<Line>,
        /// Closed in the end.
        backend: Option<Backend>,
        api: BenchApi,
        /// Says how much CPU the server used, where there is a server that says it.
        server: Option<Arc<dyn Baseline>>,
    },
}

/// One round: what the clients saw, and CPU microseconds of the server per message.
pub(super) struct Round {
    pub(super) row: Row,
    pub(super) server_cpu_us: Option<f64>,
}

impl Target {
    /// Opens what `text` names; `folder` is for the disk and for stores without a folder.
    pub(super) async fn open(text: &str, folder: &Path, number: usize) -> Result<Self> {
        if text == DISK {
            return Ok(Self {
                name: text.to_owned(),
                durability: "fdatasync of 4 KiB, one after the other".to_owned(),
                subject: Subject::Disk(folder.to_owned()),
            });
        }
        if let Some(url) = text.strip_prefix(BARE) {
            let baseline = wiring::baseline(url).await?;
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
                    backend: None,
                    api: wiring::bare_api_for_bench(Arc::clone(&baseline)).await?,
                    server: Some(baseline),
                },
            });
        }
        let (url, own) = match text.strip_prefix("embedded:") {
            Some(rest) if rest.is_empty() || rest.starts_with('?') => {
                let folder = folder.display();
                (format!("embedded:{folder}/{number}{rest}"), true)
            }
            _ => (text.to_owned(), false),
        };
        let backend = wiring::open(&url).await?;
        let name = if own { text } else { &backend.url };
        Ok(Self {
            name: name.to_owned(),
            durability: durability(&backend).await?,
            subject: Subject::Line {
                line: Arc::new(Line::open(&backend, BENCH_QUEUE).await?),
                api: wiring::ingest_api_for_bench(&backend).await?,
                server: wiring::baseline(&url).await.ok(),
                backend: Some(backend),
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
            Kind::Http => Some(Post::connect(api.address, callers, batch, payloads).await?),
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

    /// Ends what was started for the target.
    pub(super) async fn close(self) -> Result<()> {
        let Subject::Line {
            line, backend, api, ..
        } = self.subject
        else {
            return Ok(());
        };
        api.stop().await?;
        if let Line::Bare(baseline) = &*line {
            baseline.clear().await?;
        }
        match backend {
            Some(backend) => backend.lifecycle.close().await,
            None => Ok(()),
        }
    }
}

async fn used(server: Option<&Arc<dyn Baseline>>) -> Option<Duration> {
    server?.server_cpu().await.ok()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn per_message(cpu: Duration, messages: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / messages.max(1) as f64
}

/// What so many disks would do.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn times(row: Row, disks: usize) -> Row {
    Row {
        per_second: row.per_second * disks as f64,
        ..row
    }
}
