//! Finds the server of a key: always the same one, or the node of its slot in a cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;
use towpath_core::{Error, Result};

use super::config::{Address, Config, Topology};
use super::connection::{NodeConnection, Target};
use super::script::Call;
use super::{error, reply};

/// Number of attempts to load a script for one call.
const LOADS: usize = 4;

/// Pause before a retry while a slot is being moved.
const MOVING: Duration = Duration::from_millis(20);

/// The servers.
pub(super) struct Servers {
    config: Arc<Config>,
    nodes: Nodes,
    closed: AtomicBool,
}

enum Nodes {
    One(Arc<NodeConnection>),
    Cluster {
        seeds: Vec<Address>,
        map: Mutex<SlotMap>,
    },
}

#[derive(Default)]
struct SlotMap {
    nodes: HashMap<Address, Arc<NodeConnection>>,
    /// First slot, last slot, and the node that has them.
    ranges: Vec<(u16, u16, Address)>,
}

impl SlotMap {
    /// Records the new node of a slot: other nodes may not know it yet.
    fn moved(&mut self, asked: &NodeConnection, error: &RedisError) {
        let mut words = error.detail().unwrap_or_default().split(' ');
        let slot = words.next().and_then(|slot| slot.parse::<u16>().ok());
        let place = words.next().and_then(|place| place.rsplit_once(':'));
        let port = place.and_then(|(_, port)| port.parse::<u16>().ok());
        let (Some(slot), Some((host, _)), Some(port)) = (slot, place, port) else {
            self.ranges.clear();
            return;
        };
        let host = match host {
            "" => asked.host(),
            host => host.to_owned(),
        };
        self.ranges
            .retain(|(first, last, _)| (*first, *last) != (slot, slot));
        self.ranges.insert(0, (slot, slot, Address { host, port }));
    }
}

impl Servers {
    pub(super) fn new(config: Arc<Config>) -> Self {
        let one = |target| Nodes::One(Arc::new(NodeConnection::new(Arc::clone(&config), target)));
        let nodes = match &config.topology {
            Topology::Server(address) => one(Target::Address(address.clone())),
            Topology::Sentinels { sentinels, master } => one(Target::Master {
                sentinels: sentinels.clone(),
                name: master.clone(),
            }),
            Topology::Cluster(seeds) => Nodes::Cluster {
                seeds: seeds.clone(),
                map: Mutex::default(),
            },
        };
        Self {
            config,
            nodes,
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(Error::unavailable("the backend is closed"));
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        match &self.nodes {
            Nodes::One(node) => node.close().await,
            Nodes::Cluster { map, .. } => {
                for node in map.lock().await.nodes.values() {
                    node.close().await;
                }
            }
        }
    }

    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self.nodes, Nodes::Cluster { .. })
    }

    /// Checks that one step may touch all these keys.
    ///
    /// # Errors
    /// `Unsupported` when they are on different nodes of a cluster.
    pub(super) fn check_together<'a>(
        &self,
        mut keys: impl Iterator<Item = &'a [u8]>,
    ) -> Result<()> {
        if let Nodes::Cluster { .. } = self.nodes
            && let Some(first) = keys.next()
            && let slot = slot_of(first)
            && keys.any(|key| slot_of(key) != slot)
        {
            return Err(Error::unsupported(
                "the keys of one step lie on different nodes of the cluster; give the URL a `prefix={app}:` with a hash tag",
            ));
        }
        Ok(())
    }

    /// Whether a step may touch keys that are not known before it runs.
    pub(super) fn check_any_together(&self) -> Result<()> {
        if self.is_cluster() && tag_of(self.config.prefix.as_bytes()).is_none() {
            return self.check_together([&b"a"[..], b"b"].into_iter());
        }
        Ok(())
    }

    /// Runs a script once.
    pub(super) async fn run(&self, call: Call) -> Result<Value> {
        self.try_run(call).await?
    }

    /// Runs a script once. The inner error is a refusal of the server; with the outer one it may have run.
    pub(super) async fn try_run(&self, call: Call) -> Result<Result<Value>> {
        let Call { script, keys, cmd } = call;
        self.check_together(keys.iter().map(Vec::as_slice))?;
        let key = keys.first().map(Vec::as_slice).unwrap_or_default();
        // Each node of a cluster that the slot moves to gets the script once.
        for _ in 0..LOADS {
            let (node, answer) = self.attempt(key, &cmd).await?;
            match answer {
                Ok(value) => return Ok(Ok(value)),
                Err(missing) if missing.code() == Some("NOSCRIPT") => {
                    let mut load = redis::cmd("SCRIPT");
                    load.arg("LOAD").arg(script.code);
                    node.query(&load).await?;
                }
                Err(error) => {
                    let broken = error::breaks_connection(&error);
                    let error = error::of_command(&node.name(), &cmd, error);
                    return if broken { Err(error) } else { Ok(Err(error)) };
                }
            }
        }
        Err(Error::unavailable(
            "the server does not keep loaded scripts; retry",
        ))
    }

    /// Sends a command once, to the server that has `key`.
    pub(super) async fn query(&self, key: &[u8], cmd: &Cmd) -> Result<Value> {
        let (node, answer) = self.attempt(key, cmd).await?;
        answer.map_err(|error| error::of_command(&node.name(), cmd, error))
    }

    /// A server that refuses because a slot moved, or is being moved, did nothing: the command is sent to the new node, or
    /// again after a pause.
    pub(super) async fn attempt(
        &self,
        key: &[u8],
        cmd: &Cmd,
    ) -> Result<(Arc<NodeConnection>, std::result::Result<Value, RedisError>)> {
        let until = Instant::now() + self.config.timeout;
        let mut has_moved = false;
        loop {
            self.check_open()?;
            let node = self.node(key).await?;
            let answer = node.send(cmd).await;
            let Nodes::Cluster { map, .. } = &self.nodes else {
                return Ok((node, answer?));
            };
            let follow = match &answer {
                Ok(Err(error)) if is_moved(&answer) => {
                    map.lock().await.moved(&node, error);
                    true
                }
                Ok(Err(error)) if error::is_moving(error) => true,
                Ok(Err(error)) => {
                    if matches!(error.code(), Some("CLUSTERDOWN" | "READONLY")) {
                        map.lock().await.ranges.clear();
                    }
                    false
                }
                // The node may be gone for good.
                Err(_) => {
                    map.lock().await.ranges.clear();
                    false
                }
                Ok(Ok(_)) => false,
            };
            if !follow || Instant::now() >= until {
                return Ok((node, answer?));
            }
            // The first move is followed at once. Nodes may redirect to each other while it propagates.
            if std::mem::replace(&mut has_moved, true) || !is_moved(&answer) {
                tokio::time::sleep(MOVING).await;
            }
        }
    }

    /// The connection to the server that has `key`.
    pub(super) async fn node(&self, key: &[u8]) -> Result<Arc<NodeConnection>> {
        match &self.nodes {
            Nodes::One(node) => Ok(Arc::clone(node)),
            Nodes::Cluster { seeds, map } => {
                let slot = slot_of(key);
                let mut map = map.lock().await;
                if map.ranges.is_empty() {
                    self.discover(seeds, &mut map).await?;
                }
                let address = map
                    .ranges
                    .iter()
                    .find(|(first, last, _)| (*first..=*last).contains(&slot))
                    .map(|(.., address)| address.clone())
                    .ok_or_else(|| {
                        Error::unavailable(format!("no node of the cluster has slot {slot}"))
                    })?;
                Ok(self.node_at(&mut map, address))
            }
        }
    }

    /// Whether the server that has `key` answers.
    pub(super) async fn is_connected(&self, key: &[u8]) -> bool {
        match self.node(key).await {
            Ok(node) => node.is_connected().await,
            Err(_) => false,
        }
    }

    /// Every server that holds keys.
    pub(super) async fn nodes(&self) -> Result<Vec<Arc<NodeConnection>>> {
        match &self.nodes {
            Nodes::One(node) => Ok(vec![Arc::clone(node)]),
            Nodes::Cluster { seeds, map } => {
                let mut map = map.lock().await;
                if map.ranges.is_empty() {
                    self.discover(seeds, &mut map).await?;
                }
                let mut addresses: Vec<Address> = map
                    .ranges
                    .iter()
                    .map(|(.., address)| address.clone())
                    .collect();
                addresses.sort();
                addresses.dedup();
                Ok(addresses
                    .into_iter()
                    .map(|address| self.node_at(&mut map, address))
                    .collect())
            }
        }
    }

    fn node_at(&self, map: &mut SlotMap, address: Address) -> Arc<NodeConnection> {
        let node = map.nodes.entry(address).or_insert_with_key(|address| {
            Arc::new(NodeConnection::new(
                Arc::clone(&self.config),
                Target::Address(address.clone()),
            ))
        });
        Arc::clone(node)
    }

    /// Reads the slot map from the first node that answers.
    async fn discover(&self, seeds: &[Address], map: &mut SlotMap) -> Result<()> {
        let mut asked: Vec<Address> = seeds.to_vec();
        asked.extend(map.nodes.keys().cloned());
        let mut last = Error::unavailable("the cluster has no nodes");
        for address in asked {
            let node = self.node_at(map, address.clone());
            let mut cmd = redis::cmd("CLUSTER");
            cmd.arg("SLOTS");
            match node
                .query(&cmd)
                .await
                .and_then(|slots| ranges(slots, &address))
            {
                Ok(ranges) if !ranges.is_empty() => {
                    map.ranges = ranges;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn is_moved(answer: &Result<std::result::Result<Value, RedisError>>) -> bool {
    matches!(answer, Ok(Err(error)) if error.code() == Some("MOVED"))
}

/// Parses `CLUSTER SLOTS`; a node without a host is the one asked.
fn ranges(slots: Value, asked: &Address) -> Result<Vec<(u16, u16, Address)>> {
    let narrow = |value: Value| -> Result<u16> {
        let number = reply::number(value)?;
        u16::try_from(number)
            .map_err(|error| Error::corrupt("a slot or port is out of range").with_source(error))
    };
    reply::list(slots)?
        .into_iter()
        .map(|range| {
            let mut parts = reply::list(range)?.into_iter();
            let mut next = || parts.next().unwrap_or_default();
            let (first, last) = (narrow(next())?, narrow(next())?);
            let mut node = reply::list(next())?.into_iter();
            let host = match node.next().unwrap_or_default() {
                Value::Nil => asked.host.clone(),
                host => reply::text(host)?,
            };
            let host = if host.is_empty() {
                asked.host.clone()
            } else {
                host
            };
            let port = narrow(node.next().unwrap_or_default())?;
            Ok((first, last, Address { host, port }))
        })
        .collect()
}

/// The hash tag: the text between the first `{` and the next `}`, if not empty.
pub(super) fn tag_of(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let rest = &key[open + 1..];
    let close = rest.iter().position(|byte| *byte == b'}')?;
    (close > 0).then(|| &rest[..close])
}

/// Source: Redis cluster specification, "Keys distribution model".
fn slot_of(key: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in tag_of(key).unwrap_or(key) {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
        }
    }
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"messages"), slot_of(b"towpath:{messages}:records"));
        assert_eq!(slot_of(b"{}x"), slot_of(b"{}x"));
        assert_ne!(
            slot_of(b"{}x"),
            slot_of(b"{}y"),
            "an empty hash tag is ignored"
        );
    }
}
