//! Tells relays of all processes that there are events.
//!
//! `NOTIFY` takes a lock of the whole server when it commits, so no transaction with an event in it says it: one that
//! follows does, and one is enough for all that were committed meanwhile. A nudge that is lost costs the relay's poll.
//! Behind a pooler no connection can listen, and relays of other processes poll.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::AsyncMessage;
use tokio_postgres_rustls::MakeRustlsConnect;
use towpath_core::Result;

use super::config::Config;
use super::pool::Pool;

const LISTEN: &str = "LISTEN towpath_outbox";
const NOTIFY: &str = "NOTIFY towpath_outbox";

/// Between two nudges, and before listening again.
const PAUSE: Duration = Duration::from_millis(20);
const AGAIN: Duration = Duration::from_secs(1);

/// The nudges of one database.
pub(super) struct Nudge {
    pool: Pool,
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    /// This process has committed an event.
    committed: Notify,
    /// There are events for this process.
    arrived: Notify,
    telling: Once,
    listening: Once,
}

impl Nudge {
    pub(super) fn new(pool: Pool, config: &Config) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            pool,
            config: config.postgres.clone(),
            tls: config.tls()?,
            committed: Notify::new(),
            arrived: Notify::new(),
            telling: Once::new(),
            listening: Once::new(),
        }))
    }

    /// Says that an event was committed.
    pub(super) fn tell(self: &Arc<Self>) {
        self.arrived.notify_one();
        self.committed.notify_one();
        self.telling.call_once(|| {
            let nudge = Arc::downgrade(self);
            // Ends when the database is closed: it holds nothing but a weak reference.
            tokio::spawn(async move {
                while let Some(nudge) = nudge.upgrade() {
                    let waited = tokio::time::timeout(AGAIN, nudge.committed.notified()).await;
                    if waited.is_ok()
                        && let Ok(session) = nudge.pool.session().await
                    {
                        // One that fails is made up for by the relay's poll.
                        drop(session.batch(NOTIFY).await);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        });
    }

    /// Waits until one was.
    pub(super) async fn told(self: &Arc<Self>) {
        self.listening.call_once(|| {
            let (nudge, pool) = (Arc::downgrade(self), self.pool.clone());
            let (config, tls) = (self.config.clone(), self.tls.clone());
            // Ends when the database is closed, as above.
            tokio::spawn(async move {
                while nudge.strong_count() > 0 && !pool.is_pooled() {
                    let made = Instant::now();
                    let Ok((client, mut connection)) = config.connect(tls.clone()).await else {
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    };
                    let listen = client.batch_execute(LISTEN);
                    tokio::pin!(listen);
                    let mut listens = false;
                    loop {
                        tokio::select! {
                            message = std::future::poll_fn(|context| connection.poll_message(context)) => match message {
                                Some(Ok(AsyncMessage::Notification(_))) => {
                                    let Some(nudge) = nudge.upgrade() else { return };
                                    nudge.arrived.notify_one();
                                }
                                Some(Ok(_)) => {}
                                Some(Err(_)) | None => break,
                            },
                            outcome = &mut listen, if !listens => {
                                if outcome.is_err() {
                                    break;
                                }
                                listens = true;
                            }
                            () = tokio::time::sleep(AGAIN) => {
                                // Other connections were led to the wrong server: this one may be too.
                                if nudge.strong_count() == 0 || pool.has_evicted(made) {
                                    break;
                                }
                            }
                        }
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        });
        self.arrived.notified().await;
    }
}
