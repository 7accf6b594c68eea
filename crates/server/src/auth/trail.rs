//! The audit trail: records of changes and refusals in the stream `towpath.audit`, beside their log lines.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use towpath_core::port::Stream;
use towpath_core::port::stream::Trim;
use towpath_core::{NewMessage, Result, StreamName};
use tracing::warn;

use towpath::supervisor::Stop;

/// The name of the stream.
pub const STREAM: &str = "towpath.audit";

/// Records that wait for the stream's backend; beyond them a record is in the log only.
const WAITING: usize = 1024;

/// Most records that are appended at once.
const BATCH: usize = 100;

/// Between two tries to append.
const PAUSE: Duration = Duration::from_secs(1);

/// Appended records between two trims.
const TRIM_AFTER: usize = 100;

/// One record of the trail. Fields without a value are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it happened, RFC 3339.
    pub time: String,
    /// The message of its log line: `change`, `authentication failed`, `key file changed`.
    pub event: String,
    /// Who: `key:ID`, `token`, `anonymous`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Method and route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The path of the request, or the key file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The query of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<String>,
    /// The status of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why a request was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Refusals since the record before that have no record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlogged: Option<u64>,
    /// The id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Record {
    /// A record of this moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "an audit trail has the machine's wall-clock time, as the log beside it"
    )]
    pub(super) fn now(event: &str) -> Self {
        Self {
            time: jiff::Timestamp::now().to_string(),
            event: event.to_owned(),
            ..Self::default()
        }
    }
}

/// Takes records for the stream; cheap to clone.
#[derive(Debug, Clone)]
pub struct Trail(mpsc::Sender<Record>);

/// Records on their way to the stream.
pub type Records = Arc<Mutex<mpsc::Receiver<Record>>>;

impl Trail {
    /// A trail, and the records that are given to it.
    pub fn new() -> (Self, Records) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), Arc::new(Mutex::new(receiver)))
    }

    /// Takes a record, without waiting.
    pub(super) fn take(&self, record: Record) {
        if let Err(mpsc::error::TrySendError::Full(record)) = self.0.try_send(record) {
            warn!(
                event = record.event,
                "audit record not stored; the stream's backend is unavailable"
            );
        }
    }
}

/// Appends records to the stream until the stop, and keeps this many of the newest.
///
/// # Errors
/// `Invalid` for a name that no stream can have.
pub async fn store(records: Records, stream: Arc<dyn Stream>, keep: u64, stop: Stop) -> Result<()> {
    let name = StreamName::new(STREAM)?;
    let mut records = records.lock().await;
    let (mut batch, mut untrimmed) = (Vec::new(), 0);
    let mut failures = 0_u64;
    loop {
        if batch.is_empty() {
            tokio::select! {
                biased;
                count = records.recv_many(&mut batch, BATCH) => if count == 0 {
                    return Ok(());
                },
                () = stop.requested() => return Ok(()),
            }
        }
        if let Err(error) = append(&*stream, &name, &batch).await {
            if failures == 0 {
                warn!(
                    error = error.chain(),
                    "audit records not stored yet; retrying"
                );
            }
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => continue,
                () = stop.requested() => return Ok(()),
            }
        }
        failures = 0;
        stop.account.add("stored", batch.len() as u64);
        untrimmed += batch.len();
        batch.clear();
        if untrimmed >= TRIM_AFTER {
            untrimmed = 0;
            if let Err(error) = stream.trim(&name, Trim::KeepLast(keep)).await {
                warn!(error = error.chain(), "audit stream not trimmed");
            }
        }
    }
}

async fn append(stream: &dyn Stream, name: &StreamName, records: &[Record]) -> Result<()> {
    let encoded = records.iter().filter_map(|record| {
        let text = serde_json::to_vec(record).ok()?;
        Some(NewMessage::new(text))
    });
    for outcome in stream.append(name, encoded.collect()).await? {
        outcome?;
    }
    Ok(())
}
