//! The orders app without HTTP, for comparisons.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towpath_core::backend::Backend;
use towpath_core::port::queue::Settings;
use towpath_core::port::sink::Outcome;
use towpath_core::{ConsumerId, Delivery, Error, QueueName, Result, SystemClock, retry};

use towpath::consumer::QueueConsumer;
use towpath::pump::{Alone, Destination, Handler, Handling, Pump, Work};
use towpath::supervisor::Stop;
use towpath_server::apps::orders::{
    Channel, Gateway, NOTIFICATIONS, Notifier, ORDERS, OrderStore, Processor, Topology,
};
use towpath_server::telemetry::Metrics;

/// The SKU of every order.
const SKU: &str = "bench";

/// The defaults of the app.
const BATCH: usize = 100;
const LEASE: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Retention of a finished order's record.
const RETENTION: Duration = Duration::from_secs(60);

/// The gateway, and a processor and a notifier that run while the caller waits for their results.
pub(crate) struct BenchOrders {
    gateway: Gateway,
    workers: Mutex<Option<Workers>>,
}

/// The two pumps, and the ids of the orders whose customers were notified.
struct Workers {
    stop: CancellationToken,
    pumps: JoinSet<Result<()>>,
    notified: mpsc::UnboundedReceiver<Bytes>,
}

impl Workers {
    /// Ends both; returns the notifications meanwhile.
    async fn end(mut self) -> Result<Vec<Bytes>> {
        self.stop.cancel();
        while let Some(pump) = self.pumps.join_next().await {
            pump.map_err(|error| Error::unavailable("a pump panicked").with_source(error))??;
        }
        let mut ids = Vec::new();
        while let Ok(id) = self.notified.try_recv() {
            ids.push(id);
        }
        Ok(ids)
    }
}

impl BenchOrders {
    /// Sets the app up on a broker and the keys beside it; `keys` is the broker itself where it has keys.
    ///
    /// # Errors
    /// `Unsupported` for a backend that lacks a port of the app; `Conflict` when orders wait there already: a
    /// measurement leaves orders, keys and counters behind, and belongs on servers of its own.
    pub(crate) async fn open(broker: &Backend, keys: &Backend) -> Result<Self> {
        let (queue, routes) = (
            broker.require_queue("bench")?,
            broker.require_routes("bench")?,
        );
        let shared = broker.url == keys.url;
        let store = OrderStore {
            kv: keys.require_kv("bench")?,
            topology: Topology::new(Arc::clone(&queue), Arc::clone(&routes), Settings::default())?,
            queue,
            routes,
            effects: broker.effects.clone().filter(|_| shared),
            idempotency_window: RETENTION,
            retention: RETENTION,
            clock: Arc::new(SystemClock::new()),
        };
        store.topology.declare().await?;
        for name in [ORDERS, NOTIFICATIONS] {
            let stats = store.queue.stats(&QueueName::new(name)?).await?;
            if stats.ready + stats.delayed + stats.leased > 0 {
                return Err(Error::conflict(format!(
                    "`{name}` has messages of another client; measure orders on separate servers"
                )));
            }
        }
        store.set_stock(SKU, i64::MAX / 2).await?;
        Ok(Self {
            gateway: Gateway(store),
            workers: Mutex::default(),
        })
    }

    /// Accepts one order of this id, and returns once it is durable.
    ///
    /// # Errors
    /// Those of the backends; `Conflict` when the id was used before.
    pub(crate) async fn accept(&self, id: &str) -> Result<()> {
        let text = format!(r#"{{"id":"{id}","sku":"{SKU}","qty":1}}"#);
        self.gateway.take(text.as_bytes()).await
    }

    /// Ids of up to `max` orders whose customers were notified. Processor and notifier run from the first call until
    /// nothing came for `wait`.
    ///
    /// # Errors
    /// Those of a pump that cannot continue.
    pub(crate) async fn notified(&self, max: usize, wait: Duration) -> Result<Vec<Bytes>> {
        let mut held = self.workers.lock().await;
        let workers = match &mut *held {
            Some(workers) => workers,
            none => none.insert(self.start()?),
        };
        let mut ids = Vec::new();
        let came = tokio::time::timeout(wait, workers.notified.recv_many(&mut ids, max)).await;
        if came.is_err()
            && let Some(workers) = held.take()
        {
            ids = workers.end().await?;
        }
        Ok(ids)
    }

    fn start(&self) -> Result<Workers> {
        let store = &self.gateway.0;
        #[expect(
            clippy::disallowed_methods,
            reason = "the number of orders of a measurement bounds it"
        )]
        let (report, notified) = mpsc::unbounded_channel();
        let notifier = Notifier {
            store: store.clone(),
            channel: Arc::new(Channel::Log),
            timeout: TIMEOUT,
            attempts: Settings::default().retry.attempts,
        };
        let handlers: [(&str, Arc<dyn Handler>); 2] = [
            (ORDERS, Arc::new(Processor(store.clone()))),
            (NOTIFICATIONS, Arc::new(Reporting { notifier, report })),
        ];
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let mut pumps = JoinSet::new();
        let alone = Alone::default();
        for (name, handler) in handlers {
            let (queue, consumer) = (Arc::clone(&store.queue), ConsumerId::unique("bench")?);
            let pump = Pump {
                consumer: Arc::new(QueueConsumer::new(
                    queue,
                    QueueName::new(name)?,
                    consumer,
                    LEASE,
                )),
                work: Work::Messages(Handling {
                    handler,
                    in_flight: BATCH,
                    alone: alone.clone(),
                }),
                sink_name: "bench",
                retry: retry::Policy::default(),
                pause: Duration::ZERO,
                metrics: metrics.pump(name, Arc::clone(&store.clock)),
                condition: Box::new(|_, _| ()),
            };
            let stop = Stop::when(stop.clone());
            pumps.spawn(async move { pump.run(&stop).await });
        }
        Ok(Workers {
            stop,
            pumps,
            notified,
        })
    }
}

/// The notifier, and word of each order that it is done with.
struct Reporting {
    notifier: Notifier,
    report: mpsc::UnboundedSender<Bytes>,
}

/// The field of an event that counts here.
#[derive(Deserialize)]
struct OrderEvent {
    id: String,
}

#[async_trait]
impl Handler for Reporting {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        let outcome = self.notifier.handle(delivery).await;
        if matches!(outcome, Outcome::Done | Outcome::Settled)
            && let Ok(OrderEvent { id }) = serde_json::from_slice(&delivery.message.payload)
        {
            // The receiver is dropped only when the measurement is over.
            self.report.send(id.into()).ok();
        }
        outcome
    }

    fn destination(&self) -> Option<&Destination> {
        self.notifier.destination()
    }
}
