//! Notifies the relays of all processes of new events.
//!
//! `NOTIFY` takes a server-wide lock at commit, so a transaction with an event does not run it: a separate one
//! follows, and one covers all events committed meanwhile. A lost notification costs the relay one poll interval.
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

/// Pause between two notifications, and before listening again.
const PAUSE: Duration = Duration::from_millis(20);
const AGAIN: Duration = Duration::from_secs(1);

/// Notifications of one database.
pub(super) struct Notifier {
    pool: Pool,
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    /// This process has committed an event.
    committed: Notify,
    /// Events are available to this process.
    arrived: Notify,
    notifying: Once,
    listening: Once,
}

impl Notifier {
    pub(super) fn new(pool: Pool, config: &Config) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            pool,
            config: config.postgres.clone(),
            tls: config.tls()?,
            committed: Notify::new(),
            arrived: Notify::new(),
            notifying: Once::new(),
            listening: Once::new(),
        }))
    }

    /// Notifies that an event was committed.
    pub(super) fn notify(self: &Arc<Self>) {
        self.arrived.notify_one();
        self.committed.notify_one();
        self.notifying.call_once(|| {
            let notifier = Arc::downgrade(self);
            // Ends when the database is closed: it holds a weak reference.
            crate::task::spawn(async move {
                while let Some(notifier) = notifier.upgrade() {
                    let waited = tokio::time::timeout(AGAIN, notifier.committed.notified()).await;
                    if waited.is_ok()
                        && let Ok(session) = notifier.pool.session().await
                    {
                        // The relay's poll makes up for a failed one.
                        drop(session.batch(NOTIFY).await);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        });
    }

    /// Waits for a notification.
    pub(super) async fn notified(self: &Arc<Self>) {
        self.listening.call_once(|| {
            let (notifier, pool) = (Arc::downgrade(self), self.pool.clone());
            let (config, tls) = (self.config.clone(), self.tls.clone());
            // Ends when the database is closed, as above.
            crate::task::spawn(async move {
                while notifier.strong_count() > 0 && !pool.is_pooled() {
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
                                    let Some(notifier) = notifier.upgrade() else { return };
                                    notifier.arrived.notify_one();
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
                                // Other connections reached the wrong server: this one may have too.
                                if notifier.strong_count() == 0 || pool.has_evicted(made) {
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
