//! The open connections of a listener: how many one client may have, and which of them give way when all are used.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::task::{AbortHandle, Id};
use tokio::time::Instant;

use super::connection::Deadlines;

/// Interval of looking for idle connections while there are none: each look costs a lock for every connection.
const LOOK: Duration = Duration::from_millis(50);

/// A client as limits see it: an IPv4 address, or the /64 of an IPv6 address, whose owner has all of it.
pub fn client_block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

/// The connections of one client.
#[derive(Debug, Clone)]
pub struct ClientLimit {
    /// Open at once; further ones are answered 503 and closed.
    pub connections: usize,
    /// Clients without a limit, because others are behind them.
    pub proxies: Arc<[IpNet]>,
}

struct Member {
    client: IpAddr,
    deadlines: Deadlines,
    task: AbortHandle,
}

/// The open connections, by their tasks.
pub(super) struct Crowd {
    limit: Option<ClientLimit>,
    members: HashMap<Id, Member>,
    clients: HashMap<IpAddr, usize>,
    /// Those that were idle when last looked for, the longest first.
    idle: VecDeque<(Instant, Id)>,
    looked: Option<Instant>,
}

impl Crowd {
    pub(super) fn new(limit: Option<ClientLimit>) -> Self {
        Self {
            limit,
            members: HashMap::new(),
            clients: HashMap::new(),
            idle: VecDeque::new(),
            looked: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether this client may open one more.
    pub(super) fn admits(&self, peer: IpAddr) -> bool {
        let Some(limit) = &self.limit else {
            return true;
        };
        let peer = peer.to_canonical();
        let open = self.clients.get(&client_block(peer)).copied();
        open.unwrap_or(0) < limit.connections || limit.proxies.iter().any(|net| net.contains(&peer))
    }

    pub(super) fn joined(&mut self, peer: IpAddr, deadlines: Deadlines, task: AbortHandle) {
        let client = client_block(peer);
        *self.clients.entry(client).or_default() += 1;
        let member = Member {
            client,
            deadlines,
            task,
        };
        self.members.insert(member.task.id(), member);
    }

    /// The connection of this task has ended.
    pub(super) fn left(&mut self, id: Id) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        if let Entry::Occupied(mut open) = self.clients.entry(member.client) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }

    /// Ends the connection that has been idle for longest. Whether there was one.
    pub(super) fn give_way(&mut self) -> bool {
        loop {
            while let Some((since, id)) = self.idle.pop_front() {
                let Some(member) = self.members.get(&id) else {
                    continue;
                };
                if member.deadlines.give_way(since) {
                    member.task.abort();
                    self.left(id);
                    return true;
                }
            }
            if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
                return false;
            }
            self.looked = Some(Instant::now());
            let idle = self.members.iter().filter_map(|(id, member)| {
                let since = member.deadlines.idle_since()?;
                Some((since, *id))
            });
            let mut idle: Vec<_> = idle.collect();
            idle.sort_unstable_by_key(|(since, _)| *since);
            self.idle = idle.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Timeouts;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limit(connections: usize) -> ClientLimit {
        ClientLimit {
            connections,
            proxies: [IpNet::from(address("10.0.0.9"))].into(),
        }
    }

    /// A connection, which lives until it is aborted.
    fn join(crowd: &mut Crowd, tasks: &mut tokio::task::JoinSet<()>, peer: &str) -> Deadlines {
        let minute = Duration::from_secs(60);
        let deadlines = Deadlines::new(Timeouts {
            head: minute,
            idle: minute,
            write: minute,
        });
        let task = tasks.spawn(std::future::pending());
        crowd.joined(address(peer), deadlines.clone(), task);
        deadlines
    }

    #[tokio::test(start_paused = true)]
    async fn each_client_has_its_own_limit_and_proxies_have_none() {
        let (mut crowd, mut tasks) = (Crowd::new(Some(limit(2))), tokio::task::JoinSet::new());
        for peer in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db8::2"] {
            assert!(crowd.admits(address(peer)), "{peer}");
            join(&mut crowd, &mut tasks, peer);
        }
        for peer in ["10.0.0.1", "2001:db8::3"] {
            assert!(!crowd.admits(address(peer)), "{peer}");
        }
        for _ in 0..3 {
            assert!(crowd.admits(address("10.0.0.9")));
            join(&mut crowd, &mut tasks, "10.0.0.9");
        }
        assert!(crowd.admits(address("10.0.0.2")) && crowd.admits(address("2001:db8:0:1::1")));
        let gone = *crowd.members.keys().next().unwrap();
        crowd.left(gone);
        crowd.left(gone);
        assert_eq!(crowd.len(), 6);
        assert_eq!(crowd.clients.values().sum::<usize>(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_gives_way_and_a_busy_one_never() {
        let (mut crowd, mut tasks) = (Crowd::new(None), tokio::task::JoinSet::new());
        let busy = join(&mut crowd, &mut tasks, "10.0.0.1");
        busy.requested();
        for peer in ["10.0.0.2", "10.0.0.3"] {
            tokio::time::advance(Duration::from_secs(1)).await;
            join(&mut crowd, &mut tasks, peer);
        }
        for _ in 0..2 {
            assert!(crowd.give_way());
        }
        assert!(!crowd.give_way(), "one is busy");
        let ended = tasks.join_next().await.unwrap();
        assert!(ended.unwrap_err().is_cancelled());
        let left: Vec<IpAddr> = crowd.clients.keys().copied().collect();
        assert_eq!(left, [address("10.0.0.1")]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_used_since_it_was_seen_idle_is_left_alone() {
        let (mut crowd, mut tasks) = (Crowd::new(None), tokio::task::JoinSet::new());
        let mut all = Vec::new();
        for peer in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            all.push(join(&mut crowd, &mut tasks, peer));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(crowd.give_way() && all[0].has_given_way());
        all[1].requested();
        assert!(crowd.give_way() && all[2].has_given_way());
        assert!(!all[1].has_given_way() && !crowd.give_way());
    }
}
