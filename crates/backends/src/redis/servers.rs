//! Which server a key is on: always the same one, or the node of its slot in a cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;
use towpath_core::{Error, Result};

use super::config::{Address, Config, Topology};
use super::connection::{Aim, Link};
use super::script::Call;
use super::{error, reply};

/// How often a script is loaded for one call.
const LOADS: usize = 4;

/// Pause before a command is tried again whose slot is being moved.
const MOVING: Duration = Duration::from_millis(20);

/// Every server there is.
pub(super) struct Servers {
    config: Arc<Config>,
    nodes: Nodes,
    closed: AtomicBool,
}

enum Nodes {
    One(Arc<Link>),
    Cluster {
        seeds: Vec<Address>,
        map: Mutex<SlotMap>,
    },
}

#[derive(Default)]
struct SlotMap {
    links: HashMap<Address, Arc<Link>>,
    /// First slot, last slot, and the node that has them.
    ranges: Vec<(u16, u16, Address)>,
}

impl SlotMap {
    /// Notes where a slot went: other nodes may not know yet.
    fn moved(&mut self, asked: &Link, error: &RedisError) {
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
        let one = |aim| Nodes::One(Arc::new(Link::new(Arc::clone(&config), aim)));
        let nodes = match &config.topology {
            Topology::Server(address) => one(Aim::Address(address.clone())),
            Topology::Sentinels { sentinels, master } => one(Aim::Master {
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
            Nodes::One(link) => link.close().await,
            Nodes::Cluster { map, .. } => {
                for link in map.lock().await.links.values() {
                    link.close().await;
                }
            }
        }
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
        if matches!(self.nodes, Nodes::Cluster { .. })
            && tag_of(self.config.prefix.as_bytes()).is_none()
        {
            return self.check_together([&b"a"[..], b"b"].into_iter());
        }
        Ok(())
    }

    /// Runs a script once.
    pub(super) async fn run(&self, call: Call) -> Result<Value> {
        let Call { script, keys, cmd } = call;
        self.check_together(keys.iter().map(Vec::as_slice))?;
        let key = keys.first().map(Vec::as_slice).unwrap_or_default();
        // Each node of a cluster that the slot moves to gets the script once.
        for _ in 0..LOADS {
            let (link, answer) = self.attempt(key, &cmd).await?;
            match answer {
                Ok(value) => return Ok(value),
                Err(missing) if missing.code() == Some("NOSCRIPT") => {
                    let mut load = redis::cmd("SCRIPT");
                    load.arg("LOAD").arg(script.code);
                    link.query(&load).await?;
                }
                Err(error) => return Err(error::of_command(&link.name(), &cmd, error)),
            }
        }
        Err(Error::unavailable(
            "the server forgets scripts as soon as it has them; try again",
        ))
    }

    /// Sends a command once, to the server that has `key`.
    pub(super) async fn query(&self, key: &[u8], cmd: &Cmd) -> Result<Value> {
        let (link, answer) = self.attempt(key, cmd).await?;
        answer.map_err(|error| error::of_command(&link.name(), cmd, error))
    }

    /// A server that refuses because a slot has moved, or is being moved, did nothing: the next one is asked, or the
    /// same one again a little later.
    pub(super) async fn attempt(
        &self,
        key: &[u8],
        cmd: &Cmd,
    ) -> Result<(Arc<Link>, std::result::Result<Value, RedisError>)> {
        let until = Instant::now() + self.config.timeout;
        let mut has_moved = false;
        loop {
            self.check_open()?;
            let link = self.link(key).await?;
            let answer = link.send(cmd).await;
            let Nodes::Cluster { map, .. } = &self.nodes else {
                return Ok((link, answer?));
            };
            let follow = match &answer {
                Ok(Err(error)) if is_moved(&answer) => {
                    map.lock().await.moved(&link, error);
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
                return Ok((link, answer?));
            }
            // A first move is followed at once. Nodes point to each other for a moment while news of it spreads.
            if std::mem::replace(&mut has_moved, true) || !is_moved(&answer) {
                tokio::time::sleep(MOVING).await;
            }
        }
    }

    /// The way to the server that has `key`.
    pub(super) async fn link(&self, key: &[u8]) -> Result<Arc<Link>> {
        match &self.nodes {
            Nodes::One(link) => Ok(Arc::clone(link)),
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
                Ok(self.link_to(&mut map, address))
            }
        }
    }

    /// Whether the server that has `key` answers.
    pub(super) async fn is_connected(&self, key: &[u8]) -> bool {
        match self.link(key).await {
            Ok(link) => link.is_connected().await,
            Err(_) => false,
        }
    }

    /// Every server that holds keys.
    pub(super) async fn links(&self) -> Result<Vec<Arc<Link>>> {
        match &self.nodes {
            Nodes::One(link) => Ok(vec![Arc::clone(link)]),
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
                    .map(|address| self.link_to(&mut map, address))
                    .collect())
            }
        }
    }

    fn link_to(&self, map: &mut SlotMap, address: Address) -> Arc<Link> {
        let link = map.links.entry(address).or_insert_with_key(|address| {
            Arc::new(Link::new(
                Arc::clone(&self.config),
                Aim::Address(address.clone()),
            ))
        });
        Arc::clone(link)
    }

    /// Asks one node after the other which has what.
    async fn discover(&self, seeds: &[Address], map: &mut SlotMap) -> Result<()> {
        let mut asked: Vec<Address> = seeds.to_vec();
        asked.extend(map.links.keys().cloned());
        let mut last = Error::unavailable("the cluster has no nodes");
        for address in asked {
            let link = self.link_to(map, address.clone());
            let mut cmd = redis::cmd("CLUSTER");
            cmd.arg("SLOTS");
            match link
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

/// Reads `CLUSTER SLOTS`; a node without a host is the one that was asked.
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

/// What stands between the first `{` and the `}` behind it, if anything.
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
        assert_ne!(slot_of(b"{}x"), slot_of(b"{}y"), "an empty tag is none");
    }
}
