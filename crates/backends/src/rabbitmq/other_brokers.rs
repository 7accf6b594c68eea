//! Brokers of the list that are not one cluster: what waits on one of them reaches no consumer that is on another.
//!
//! The nodes of the list besides the one in use are looked at every few seconds, and so is whether they are one cluster
//! with it: a queue of this connection is known there, or it is not. Messages that wait on another broker without a
//! consumer are said in health and by `Queue::stranded`, and `Queue::collect` moves them.

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
use super::connection::{Link, Open};
use super::error;
use super::publisher::Letter;
use super::store::{Known, Store, lock};

/// How often the other brokers are looked at.
const LOOK: Duration = Duration::from_secs(3);

/// Messages that are moved at once.
const AT_ONCE: usize = 30;

/// The other brokers, and what was found there.
pub(super) struct Elsewhere {
    others: Vec<(String, Link)>,
    /// Nodes that are one cluster with the node of a connection, by its number.
    same: Mutex<BTreeSet<(u64, String)>>,
    /// By node.
    found: Mutex<BTreeMap<String, Vec<(QueueName, u64)>>>,
    /// One look or collection at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Elsewhere {
    pub(super) fn new(config: &Config) -> Self {
        let several = config.nodes.len() > 1;
        let nodes = config.nodes.iter().filter(|_| several);
        let one = |node: &(String, _)| {
            let mut alone = config.clone();
            alone.nodes = vec![node.clone()];
            (node.0.clone(), Link::new("looking", alone))
        };
        Self {
            others: nodes.map(one).collect(),
            same: Mutex::default(),
            found: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// What waits of a queue on other brokers.
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
        for (_, link) in &self.others {
            link.close().await;
        }
    }
}

/// Looks at the other brokers as long as the store is open.
async fn watch(store: Weak<Store>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(store) = store.upgrade() else {
            return;
        };
        if store.check_open().is_err() {
            return;
        }
        if store.link.is_connected() {
            store.look_elsewhere().await;
        }
    }
}

impl Store {
    async fn look_elsewhere(&self) {
        let _turn = self.elsewhere.turn.lock().await;
        let Ok(open) = self.link.open().await else {
            return;
        };
        for (node, link) in &self.elsewhere.others {
            let counts = match self.look_at_node(&open, node, link).await {
                Ok(counts) => counts,
                Err(error) => {
                    debug!(node, error = error.chain(), "other broker not looked at");
                    Vec::new()
                }
            };
            let before = match counts.is_empty() {
                true => lock(&self.elsewhere.found).remove(node),
                false => lock(&self.elsewhere.found).insert(node.clone(), counts.clone()),
            };
            let before = before.unwrap_or_default();
            for (queue, messages) in counts {
                if !before.iter().any(|(known, _)| *known == queue) {
                    warn!(
                        %queue, node, messages, connected_to = open.node,
                        "messages wait on another broker without a consumer"
                    );
                }
            }
        }
    }

    /// Queues with messages and without a consumer at another node; none when it is one cluster with this one.
    async fn look_at_node(
        &self,
        open: &Open,
        node: &String,
        link: &Link,
    ) -> Result<Vec<(QueueName, u64)>> {
        let pair = (open.number, node.clone());
        if *node == open.node || lock(&self.elsewhere.same).contains(&pair) {
            return Ok(Vec::new());
        }
        let there = link.open().await?;
        if self.is_one_cluster(open, link, &there).await? {
            {
                let mut same = lock(&self.elsewhere.same);
                same.retain(|(number, _)| *number == open.number);
                same.insert(pair);
            }
            link.close().await;
            return Ok(Vec::new());
        }
        let mut counts = Vec::new();
        for known in self.all_known() {
            if let Some((messages, consumers)) = count(link, &there, &known.wire).await?
                && messages > 0
                && consumers == 0
            {
                counts.push((known.name.clone(), messages));
            }
        }
        Ok(counts)
    }

    /// Whether a queue that is exclusive to this connection is known at the other node.
    async fn is_one_cluster(&self, open: &Open, link: &Link, there: &Open) -> Result<bool> {
        let channel = self.link.channel(open).await?;
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare("".into(), exclusive, FieldTable::default());
        let name = self.link.call(open, declared).await?.name().to_string();
        let asking = link.channel(there).await?;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asked = asking.queue_declare(name.as_str().into(), passive, FieldTable::default());
        let is_known = match link.ask(there, asked).await? {
            Err(told) if error::is_not_found(&told) => false,
            // Locked by its connection, and so known.
            Err(told) if error::is_of_channel(&told) => true,
            Err(told) => return Err(link.failed(there, told)),
            Ok(_) => true,
        };
        let deleted = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default());
        self.link.call(open, deleted).await?;
        Ok(is_known)
    }

    /// Moves what waits of a queue on other brokers to this one, confirmed before it is acked there.
    pub(super) async fn collect(&self, known: &Known) -> Result<u64> {
        self.check_open()?;
        let mut moved = 0;
        {
            let _turn = self.elsewhere.turn.lock().await;
            let open = self.link.open().await?;
            for (node, link) in &self.elsewhere.others {
                let counts = match self.look_at_node(&open, node, link).await {
                    Ok(counts) => counts,
                    Err(error) => {
                        debug!(node, error = error.chain(), "other broker not looked at");
                        continue;
                    }
                };
                if counts.iter().any(|(name, _)| *name == known.name) {
                    let count = self.collect_from(link, known).await?;
                    info!(queue = %known.name, node, count, "messages moved from another broker");
                    moved += count;
                }
            }
        }
        self.look_elsewhere().await;
        Ok(moved)
    }

    async fn collect_from(&self, link: &Link, known: &Known) -> Result<u64> {
        let there = link.open().await?;
        // What is not acked on it goes back when it ends.
        let channel = link.channel(&there).await?;
        let mut moved = 0;
        loop {
            let get = || channel.basic_get(known.wire.as_str().into(), BasicGetOptions::default());
            let answers = join_all((0..AT_ONCE).map(|_| get()));
            let mut arrivals = Vec::new();
            for answer in link.ask(&there, answers).await? {
                if let Some(message) = link.call(&there, async { answer }).await? {
                    arrivals.push(message.delivery);
                }
            }
            if arrivals.is_empty() {
                let closed = channel.close(200, "moved".into());
                link.call(&there, closed).await?;
                return Ok(moved);
            }
            let letters = arrivals.iter().map(|arrival| Letter {
                exchange: String::new(),
                routing_key: known.wire.clone(),
                properties: arrival.properties.clone(),
                payload: arrival.data.clone().into(),
            });
            let sent = self.post(known, letters.collect()).await;
            for (arrival, sent) in arrivals.into_iter().zip(sent) {
                sent?;
                let ack = arrival.acker.ack(BasicAckOptions::default());
                link.call(&there, ack).await?;
                moved += 1;
            }
        }
    }

    pub(super) fn watch_elsewhere(self: &Arc<Self>) {
        if !self.elsewhere.others.is_empty() {
            // Ends with the store.
            tokio::spawn(watch(Arc::downgrade(self)));
        }
    }
}

/// Messages and consumers of a queue at a node; `None` when it is not there.
async fn count(link: &Link, there: &Open, name: &str) -> Result<Option<(u64, u64)>> {
    let channel = link.channel(there).await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let asked = channel.queue_declare(name.into(), passive, FieldTable::default());
    match link.ask(there, asked).await? {
        Ok(queue) => {
            let counts = (queue.message_count().into(), queue.consumer_count().into());
            link.call(there, channel.close(200, "asked".into())).await?;
            Ok(Some(counts))
        }
        Err(told) if error::is_not_found(&told) => Ok(None),
        Err(told) => Err(link.failed(there, told)),
    }
}
