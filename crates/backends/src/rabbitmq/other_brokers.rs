//! Brokers of the list that are not one cluster: messages on one of them do not reach consumers on another.
//!
//! The other nodes of the list are checked every few seconds for being in the same cluster: a queue of this connection
//! exists there, or it does not. Messages that wait on another broker without a
//! consumer are reported in health and by `Queue::stranded`, and `Queue::collect` moves them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use towpath_core::port::queue::Stranded;
use towpath_core::{QueueName, Result};
use tracing::{debug, info, warn};

use super::config::Config;
use super::connection::{BrokerConnection, OpenConnection};
use super::error;
use super::publisher::Publish;
use super::store::{QueueHandle, Store, lock};

/// Interval of the checks.
const LOOK: Duration = Duration::from_secs(3);

/// Messages moved at once.
const AT_ONCE: usize = 30;

/// The other brokers, and the stranded messages found there.
pub(super) struct OtherBrokers {
    others: Vec<(String, BrokerConnection)>,
    /// Nodes in the cluster of a connection, by its number.
    same: Mutex<BTreeSet<(u64, String)>>,
    /// By node.
    found: Mutex<BTreeMap<String, Vec<(QueueName, u64)>>>,
    /// One check or collection at a time.
    turn: tokio::sync::Mutex<()>,
}

impl OtherBrokers {
    pub(super) fn new(config: &Config) -> Self {
        let several = config.nodes.len() > 1;
        let nodes = config.nodes.iter().filter(|_| several);
        let one = |node: &(String, _)| {
            let mut alone = config.clone();
            alone.nodes = vec![node.clone()];
            (node.0.clone(), BrokerConnection::new("checking", alone))
        };
        Self {
            others: nodes.map(one).collect(),
            same: Mutex::default(),
            found: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Stranded messages of a queue.
    pub(super) fn of(&self, queue: &QueueName) -> Vec<Stranded> {
        let found = lock(&self.found);
        let all = found.iter().flat_map(|(node, counts)| {
            let of_queue = counts.iter().filter(|(name, _)| name == queue);
            of_queue.map(|(_, messages)| Stranded {
                place: node.clone(),
                messages: *messages,
            })
        });
        all.collect()
    }

    pub(super) async fn close(&self) {
        for (_, broker) in &self.others {
            broker.close().await;
        }
    }
}

/// Checks the other brokers as long as the store is open.
async fn watch(store: Weak<Store>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(store) = store.upgrade() else {
            return;
        };
        if store.check_open().is_err() {
            return;
        }
        if store.broker.is_connected() {
            store.look_elsewhere().await;
        }
    }
}

impl Store {
    async fn look_elsewhere(&self) {
        let _turn = self.other_brokers.turn.lock().await;
        let Ok(open) = self.broker.open().await else {
            return;
        };
        for (node, broker) in &self.other_brokers.others {
            let counts = match self.look_at_node(&open, node, broker).await {
                Ok(counts) => counts,
                Err(error) => {
                    debug!(node, error = error.chain(), "other broker not checked");
                    Vec::new()
                }
            };
            let before = match counts.is_empty() {
                true => lock(&self.other_brokers.found).remove(node),
                false => lock(&self.other_brokers.found).insert(node.clone(), counts.clone()),
            };
            let before = before.unwrap_or_default();
            for (queue, messages) in counts {
                if !before.iter().any(|(handle, _)| *handle == queue) {
                    warn!(
                        %queue, node, messages, connected_to = open.node,
                        "messages waiting on another broker without a consumer"
                    );
                }
            }
        }
    }

    /// Queues with messages and without a consumer at another node; none when it is one cluster with this one.
    async fn look_at_node(
        &self,
        open: &OpenConnection,
        node: &String,
        broker: &BrokerConnection,
    ) -> Result<Vec<(QueueName, u64)>> {
        let pair = (open.number, node.clone());
        if *node == open.node || lock(&self.other_brokers.same).contains(&pair) {
            return Ok(Vec::new());
        }
        let there = broker.open().await?;
        if self.is_one_cluster(open, broker, &there).await? {
            {
                let mut same = lock(&self.other_brokers.same);
                same.retain(|(number, _)| *number == open.number);
                same.insert(pair);
            }
            broker.close().await;
            return Ok(Vec::new());
        }
        let mut counts = Vec::new();
        for handle in self.handles() {
            if let Some((messages, consumers)) = count(broker, &there, &handle.wire).await?
                && messages > 0
                && consumers == 0
            {
                counts.push((handle.name.clone(), messages));
            }
        }
        Ok(counts)
    }

    /// Whether an exclusive queue of this connection exists at the other node.
    async fn is_one_cluster(
        &self,
        open: &OpenConnection,
        broker: &BrokerConnection,
        there: &OpenConnection,
    ) -> Result<bool> {
        let channel = self.broker.channel(open).await?;
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare("".into(), exclusive, FieldTable::default());
        let name = self.broker.call(open, declared).await?.name().to_string();
        let asking = broker.channel(there).await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asked = asking.queue_declare(name.as_str().into(), passive, FieldTable::default());
        let is_known = match broker.ask(there, asked).await? {
            Err(error) if error::is_not_found(&error) => false,
            // Locked by its connection, so it exists.
            Err(error) if error::is_of_channel(&error) => true,
            Err(error) => return Err(broker.failed(there, error)),
            Ok(_) => true,
        };
        let deleted = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
        self.broker.call(open, deleted).await?;
        Ok(is_known)
    }

    /// Moves stranded messages of a queue to this broker, confirmed before they are acked there.
    pub(super) async fn collect(&self, handle: &QueueHandle) -> Result<u64> {
        self.check_open()?;
        let mut moved = 0;
        {
            let _turn = self.other_brokers.turn.lock().await;
            let open = self.broker.open().await?;
            for (node, broker) in &self.other_brokers.others {
                let counts = match self.look_at_node(&open, node, broker).await {
                    Ok(counts) => counts,
                    Err(error) => {
                        debug!(node, error = error.chain(), "other broker not checked");
                        continue;
                    }
                };
                if counts.iter().any(|(name, _)| *name == handle.name) {
                    let count = self.collect_from(broker, handle).await?;
                    info!(queue = %handle.name, node, count, "messages moved from another broker");
                    moved += count;
                }
            }
        }
        self.look_elsewhere().await;
        Ok(moved)
    }

    async fn collect_from(&self, broker: &BrokerConnection, handle: &QueueHandle) -> Result<u64> {
        let there = broker.open().await?;
        // Unacked messages are requeued when the channel closes.
        let channel = broker.channel(&there).await?;
        let mut moved = 0;
        loop {
            let get = || channel.basic_get(handle.wire.as_str().into(), BasicGetOptions::default());
            let answers = join_all((0..AT_ONCE).map(|_| get()));
            let mut arrivals = Vec::new();
            for answer in broker.ask(&there, answers).await? {
                if let Some(message) = broker.call(&there, async { answer }).await? {
                    arrivals.push(message.delivery);
                }
            }
            if arrivals.is_empty() {
                let closed = channel.close(200, "moved".into());
                broker.call(&there, closed).await?;
                return Ok(moved);
            }
            let publishes = arrivals.iter().map(|arrival| Publish {
                exchange: String::new(),
                routing_key: handle.wire.clone(),
                properties: arrival.properties.clone(),
                payload: arrival.data.clone().into(),
            });
            let sent = self.post(handle, publishes.collect()).await;
            for (arrival, sent) in arrivals.into_iter().zip(sent) {
                sent?;
                let ack = arrival.acker.ack(BasicAckOptions::default());
                broker.call(&there, ack).await?;
                moved += 1;
            }
        }
    }

    pub(super) fn watch_other_brokers(self: &Arc<Self>) {
        if !self.other_brokers.others.is_empty() {
            // Ends with the store.
            crate::task::spawn(watch(Arc::downgrade(self)));
        }
    }
}

/// Messages and consumers of a queue at a node; `None` for a missing queue.
async fn count(
    broker: &BrokerConnection,
    there: &OpenConnection,
    name: &str,
) -> Result<Option<(u64, u64)>> {
    let channel = broker.channel(there).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let asked = channel.queue_declare(name.into(), passive, FieldTable::default());
    match broker.ask(there, asked).await? {
        Ok(queue) => {
            let counts = (queue.message_count().into(), queue.consumer_count().into());
            broker
                .call(there, channel.close(200, "asked".into()))
                .await?;
            Ok(Some(counts))
        }
        Err(error) if error::is_not_found(&error) => Ok(None),
        Err(error) => Err(broker.failed(there, error)),
    }
}
