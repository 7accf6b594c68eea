//! A cluster whose slots move from node to node while messages come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Value};
use towpath_core::port::stream::{ReadRequest, Start};
use towpath_core::{ErrorKind, GroupName, MessageId, StreamName};
use towpath_testkit::Own;

use super::redis::Server;
use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        nothing_is_lost_while_slots_move,
        a_call_waits_while_its_slot_is_moved,
    ]
}

struct Node {
    server: Server,
    connection: MultiplexedConnection,
    id: String,
}

impl Node {
    async fn start() -> Self {
        let server = Server::start(&["--cluster-enabled", "yes", "--appendonly", "no"]);
        let client = ::redis::Client::open(server.url()).expect("a URL");
        let connection = client.get_multiplexed_async_connection().await;
        let mut node = Self {
            server,
            connection: connection.expect("connects"),
            id: String::new(),
        };
        node.id = text(node.ask(&["CLUSTER", "MYID"]).await);
        node
    }

    async fn try_ask(&mut self, words: &[&str]) -> ::redis::RedisResult<Value> {
        let mut cmd = Cmd::new();
        cmd.arg(words);
        cmd.query_async(&mut self.connection).await
    }

    async fn ask(&mut self, words: &[&str]) -> Value {
        let answer = self.try_ask(words).await;
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).expect("text"),
        other => panic!("{other:?}"),
    }
}

/// Three primaries with a third of the slots each.
async fn nodes() -> Vec<Node> {
    let mut nodes = Vec::new();
    for (epoch, (first, last)) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")]
        .into_iter()
        .enumerate()
    {
        let mut node = Node::start().await;
        node.ask(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
        let epoch = (epoch + 1).to_string();
        node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
        nodes.push(node);
    }
    let port = nodes[0].server.port().to_string();
    for node in &mut nodes[1..] {
        node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port]).await;
    }
    until("the cluster to be whole", || async {
        nodes.iter().all(|node| {
            let info = node.server.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
    })
    .await;
    nodes
}

/// Moves a slot in a few batches of keys, as `redis-cli --cluster reshard` does, with a pause between them.
async fn move_slot(nodes: &mut [Node], slot: &str, from: usize, to: usize, pause: Duration) {
    let (source, target) = (nodes[from].id.clone(), nodes[to].id.clone());
    nodes[to]
        .ask(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &source])
        .await;
    nodes[from]
        .ask(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &target])
        .await;
    let port = nodes[to].server.port().to_string();
    let count = nodes[from].ask(&["CLUSTER", "COUNTKEYSINSLOT", slot]).await;
    let Value::Int(count) = count else {
        panic!("{count:?}")
    };
    let batch = (count / 5).max(1).to_string();
    loop {
        let keys = nodes[from]
            .ask(&["CLUSTER", "GETKEYSINSLOT", slot, &batch])
            .await;
        let Value::Array(keys) = keys else {
            panic!("{keys:?}")
        };
        if keys.is_empty() {
            break;
        }
        let keys: Vec<String> = keys.into_iter().map(text).collect();
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(keys.iter().map(String::as_str));
        nodes[from].ask(&words).await;
        tokio::time::sleep(pause).await;
    }
    nodes[to]
        .ask(&["CLUSTER", "SETSLOT", slot, "NODE", &target])
        .await;
    nodes[from]
        .ask(&["CLUSTER", "SETSLOT", slot, "NODE", &target])
        .await;
}

async fn slot_of(node: &mut Node, key: &str) -> u16 {
    let Value::Int(slot) = node.ask(&["CLUSTER", "KEYSLOT", key]).await else {
        panic!("a slot")
    };
    u16::try_from(slot).expect("a slot")
}

const fn owner(slot: u16) -> usize {
    match slot {
        0..=5460 => 0,
        5461..=10922 => 1,
        _ => 2,
    }
}

/// Acknowledged and received messages.
#[derive(Default)]
struct Ledger {
    taken: Mutex<BTreeSet<MessageId>>,
    acked: Mutex<BTreeMap<MessageId, u32>>,
    read: Mutex<BTreeMap<MessageId, u32>>,
    appended: Mutex<BTreeSet<MessageId>>,
    refused: AtomicU64,
    producing: AtomicBool,
    consuming: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}

impl Ledger {
    /// Only one kind of error is an excuse.
    async fn excuse(&self, error: &towpath_core::Error) {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        self.refused.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn produce(backend: Backend, name: String, ledger: Arc<Ledger>) {
    let (queue, name) = (
        queue_of(&backend),
        QueueName::new(name).expect("a valid name"),
    );
    while ledger.producing.load(Ordering::Relaxed) {
        let message = NewMessage::new("x");
        let message = NewMessage {
            dedup_id: Some(message.id.to_string()),
            ..message
        };
        loop {
            match queue.enqueue(&name, vec![message.clone()]).await {
                Ok(mut outcomes) => {
                    let taken = outcomes.pop().expect("one outcome").expect("taken");
                    assert_eq!(taken.id(), message.id);
                    locked(&ledger.taken).insert(message.id);
                    break;
                }
                Err(error) => ledger.excuse(&error).await,
            }
        }
    }
}

async fn consume(backend: Backend, name: String, ledger: Arc<Ledger>) {
    let (queue, name) = (
        queue_of(&backend),
        QueueName::new(name).expect("a valid name"),
    );
    while ledger.consuming.load(Ordering::Relaxed) {
        let request = LeaseRequest {
            queue: name.clone(),
            consumer: consumer("one"),
            max: 20,
            in_flight: 20,
            // One whose answer was lost comes back while the test runs.
            lease: Duration::from_secs(2),
            wait: Duration::from_millis(50),
        };
        let held = match queue.lease(request).await {
            Ok(held) => held,
            Err(error) => {
                ledger.excuse(&error).await;
                continue;
            }
        };
        // Half of them fail once, so that more than the list is in use.
        let settlements = held.iter().map(|one| Settlement {
            receipt: one.receipt.clone(),
            disposition: match one.attempt == 1 && one.message.id.as_bytes()[15] % 2 == 0 {
                true => Disposition::Retry {
                    after: Duration::ZERO,
                    error: "once".to_owned(),
                },
                false => Disposition::Ack,
            },
        });
        let settlements: Vec<Settlement> = settlements.collect();
        match queue.settle(settlements.clone()).await {
            Ok(outcomes) => {
                for ((one, settlement), outcome) in held.iter().zip(settlements).zip(outcomes) {
                    if outcome.is_ok() && settlement.disposition == Disposition::Ack {
                        *locked(&ledger.acked).entry(one.message.id).or_default() += 1;
                    }
                }
            }
            Err(error) => ledger.excuse(&error).await,
        }
    }
}

fn lines() -> StreamName {
    StreamName::new("lines").expect("a valid name")
}

async fn append(backend: Backend, ledger: Arc<Ledger>) {
    let stream = backend.stream.clone().expect("redis has streams");
    while ledger.producing.load(Ordering::Relaxed) {
        let entry = NewMessage::new("x");
        let entry = NewMessage {
            dedup_id: Some(entry.id.to_string()),
            ..entry
        };
        loop {
            match stream.append(&lines(), vec![entry.clone()]).await {
                Ok(mut outcomes) => {
                    outcomes.pop().expect("one outcome").expect("taken");
                    locked(&ledger.appended).insert(entry.id);
                    break;
                }
                Err(error) => ledger.excuse(&error).await,
            }
        }
    }
}

async fn read(backend: Backend, ledger: Arc<Ledger>) {
    let stream = backend.stream.clone().expect("redis has streams");
    let group = GroupName::new("group").expect("a valid name");
    while let Err(error) = stream
        .create_group(&lines(), &group, Start::Beginning)
        .await
    {
        ledger.excuse(&error).await;
    }
    while ledger.consuming.load(Ordering::Relaxed) {
        // Entries of a call whose answer was lost are claimed.
        let claimed = stream
            .claim(
                &lines(),
                &group,
                &consumer("one"),
                Duration::from_secs(2),
                50,
            )
            .await;
        let request = ReadRequest {
            stream: lines(),
            group: group.clone(),
            consumer: consumer("one"),
            max: 50,
            wait: Duration::from_millis(50),
        };
        let found = match (claimed, stream.read(request).await) {
            (Ok(mut claimed), Ok(read)) => {
                claimed.extend(read);
                claimed
            }
            (Err(error), _) | (_, Err(error)) => {
                ledger.excuse(&error).await;
                continue;
            }
        };
        let offsets: Vec<_> = found.iter().map(|entry| entry.offset).collect();
        for entry in found {
            *locked(&ledger.read).entry(entry.message.id).or_default() += 1;
        }
        while let Err(error) = stream.commit(&lines(), &group, &offsets).await {
            ledger.excuse(&error).await;
        }
    }
}

async fn nothing_is_lost_while_slots_move() {
    let mut nodes = nodes().await;
    let place = format!("redis+cluster://127.0.0.1:{}", nodes[0].server.port());
    let names = ["one", "two", "three"];
    let ledger = Arc::new(Ledger::default());
    ledger.producing.store(true, Ordering::Relaxed);
    ledger.consuming.store(true, Ordering::Relaxed);
    let (mut producing, mut consuming) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for name in names {
        producing.spawn(produce(
            open(&place).await,
            name.to_owned(),
            Arc::clone(&ledger),
        ));
        consuming.spawn(consume(
            open(&place).await,
            name.to_owned(),
            Arc::clone(&ledger),
        ));
    }
    producing.spawn(append(open(&place).await, Arc::clone(&ledger)));
    consuming.spawn(read(open(&place).await, Arc::clone(&ledger)));
    let mut places = BTreeMap::new();
    for key in names
        .into_iter()
        .chain(["lines", "towpath:queues", "towpath:streams"])
    {
        let slot = slot_of(&mut nodes[0], key).await;
        places.insert(slot, owner(slot));
    }
    // Each slot moves around the nodes once, first as fast as real tools move it, then slower.
    for round in 0..3_u32 {
        for (slot, at) in &mut places {
            let to = (*at + 1) % nodes.len();
            let pause = Duration::from_millis(u64::from(round) * 15);
            move_slot(&mut nodes, &slot.to_string(), *at, to, pause).await;
            *at = to;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    ledger.producing.store(false, Ordering::Relaxed);
    while let Some(ended) = producing.join_next().await {
        ended.expect("a producer ends well");
    }
    until("everything to come out", || async {
        locked(&ledger.acked).len() >= locked(&ledger.taken).len()
            && locked(&ledger.read).len() >= locked(&ledger.appended).len()
    })
    .await;
    // Nothing more comes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ledger.consuming.store(false, Ordering::Relaxed);
    while let Some(ended) = consuming.join_next().await {
        ended.expect("a consumer ends well");
    }
    let (taken, acked) = (locked(&ledger.taken).clone(), locked(&ledger.acked).clone());
    assert!(taken.len() > 100, "{} only", taken.len());
    let lost = taken.iter().filter(|id| !acked.contains_key(id)).count();
    assert_eq!(lost, 0, "of {} were lost", taken.len());
    assert!(acked.values().all(|times| *times == 1), "acked twice");
    assert!(
        acked.keys().all(|id| taken.contains(id)),
        "came from nowhere"
    );
    let (appended, read) = (
        locked(&ledger.appended).clone(),
        locked(&ledger.read).clone(),
    );
    let lost = appended.iter().filter(|id| !read.contains_key(id)).count();
    assert_eq!(lost, 0, "of {} entries were lost", appended.len());
    let backend = open(&place).await;
    let all = queue_of(&backend).list().await.expect("list");
    let total: u64 = all.iter().map(|one| one.acked).sum();
    assert_eq!(total, taken.len() as u64, "counted once each");
    for one in all {
        assert_eq!(
            (one.ready, one.leased, one.delayed, one.dead),
            (0, 0, 0, 0),
            "{one:?}"
        );
    }
    let entries = backend
        .stream
        .clone()
        .expect("redis has streams")
        .stats(&lines())
        .await;
    assert_eq!(
        entries.expect("stats").entries,
        appended.len() as u64,
        "no entry twice"
    );
}

async fn a_call_waits_while_its_slot_is_moved() {
    let mut nodes = nodes().await;
    let place = format!("redis+cluster://127.0.0.1:{}", nodes[0].server.port());
    let backend = open(&place).await;
    let queue = queue_of(&backend);
    enqueue(&queue, vec![NewMessage::new("before")]).await;
    let slot = slot_of(&mut nodes[0], "messages").await;
    let (from, to) = (owner(slot), (owner(slot) + 1) % 3);
    let sending = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            for number in 0..50 {
                enqueue(&queue, vec![NewMessage::new(number.to_string())]).await;
            }
        })
    };
    move_slot(
        &mut nodes,
        &slot.to_string(),
        from,
        to,
        Duration::from_millis(50),
    )
    .await;
    sending.await.expect("no call was refused");
    let held = lease(&queue, "one", Duration::ZERO).await;
    assert_eq!(held.len(), 51);
    let left = nodes[from]
        .server
        .command(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]);
    assert_eq!(left, ":0\r\n");
}
