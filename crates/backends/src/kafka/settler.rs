//! Settling: one task for each member of a queue's group commits what is settled, for all who wait together.
//!
//! What only goes is a commit of positions. What moves, to a later moment, to the dead letters, or back, is produced
//! in one transaction with the positions: it is in one place at every moment, whoever dies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use towpath_core::{Error, ErrorKind, MessageId, Result, Timestamp};
use tracing::{debug, warn};

use super::buffers::{Bench, Held, Later, Ready};
use super::consumer::{Member, lock};
use super::produce::Record;
use super::queue::Known;
use super::store::{Store, blocking};
use super::transaction::{Failed, Positions, Transactions, list};
use super::{envelope, error};

/// Jobs done at once.
const AT_ONCE: usize = 1_000;

/// Payload bytes moved in one transaction, about.
const ENOUGH_BYTES: usize = 32 << 20;

/// The pause before a failure is tried again, as while partitions move.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a transaction may be open. One whose process died holds up its partitions so long.
const TRANSACTION: Duration = Duration::from_secs(10);

/// Where a settled message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// Nowhere: it is done.
    Gone,
    /// To the end of its queue.
    Queue,
    /// Into this partition of what comes later.
    Later(i32),
    /// To the dead letters.
    Dead,
}

/// A message in hand that is settled so.
pub(super) struct Job {
    /// Its number in the hand.
    pub(super) number: u64,
    /// Deliveries that a copy of it counts.
    pub(super) attempts: u32,
    pub(super) held: Held,
    pub(super) to: To,
    /// Only what names a dead letter moves: its record would be larger than the topic takes.
    pub(super) is_cut: bool,
}

impl Job {
    /// Makes its record smaller, after the topic refused it; false when it cannot be.
    fn shrink(&mut self, now: Timestamp) -> bool {
        match self.to {
            To::Gone => false,
            To::Queue | To::Later(_) => {
                let last = self
                    .held
                    .envelope
                    .errors
                    .last()
                    .cloned()
                    .unwrap_or_default();
                let reason = format!("too large for the topic of retries; last error: {last}");
                self.held.envelope.die(&reason, now);
                self.to = To::Dead;
                true
            }
            To::Dead => !std::mem::replace(&mut self.is_cut, true),
        }
    }
}

struct Asked {
    job: Job,
    /// It was in a transaction with a record that its topic refused.
    is_suspect: bool,
    answer: oneshot::Sender<Result<()>>,
}

/// The way to a member's task.
pub(super) struct Registrar {
    asks: Mutex<Option<mpsc::UnboundedSender<Asked>>>,
    /// A delivery was counted that the broker shall know of soon.
    counted: Notify,
    /// The outcome of a transaction is not known: only a new member can go on.
    lost: AtomicBool,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Both members of a queue in this process.
#[derive(Clone)]
pub(super) struct Members {
    pub(super) ready: Arc<Member<Ready>>,
    pub(super) later: Arc<Member<Later>>,
}

impl Members {
    /// Notes what this process put there, so that it is waited for.
    pub(super) fn note_produced(&self, to: To, (partition, at): (i32, i64)) {
        match to {
            To::Queue => self.ready.note_produced(partition, at),
            To::Later(_) => self.later.note_produced(partition, at),
            To::Gone | To::Dead => {}
        }
    }

    /// The same of what was produced in a transaction that has ended.
    pub(super) fn note_marked(&self, to: To, (partition, at): (i32, i64)) {
        match to {
            To::Queue => self.ready.note_marked(partition, at),
            To::Later(_) => self.later.note_marked(partition, at),
            To::Gone | To::Dead => {}
        }
    }
}

impl Registrar {
    /// Starts the task of `member`, which is one of `members`.
    pub(super) fn start<S: Bench>(
        store: Arc<Store>,
        known: Arc<Known>,
        members: Members,
        member: Arc<Member<S>>,
    ) -> Arc<Self> {
        let (asks, asked) = mpsc::unbounded_channel();
        let registrar = Arc::new(Self {
            asks: Mutex::new(Some(asks)),
            counted: Notify::new(),
            lost: AtomicBool::new(false),
            task: Mutex::default(),
        });
        let office = Office {
            store,
            known,
            members,
            member,
            registrar: Arc::clone(&registrar),
            transactions: None,
        };
        // Ends with the channel, which `close` does.
        *lock(&registrar.task) = Some(tokio::spawn(office.run(asked)));
        registrar
    }

    /// Settles; one outcome for each, in order. Goes on when the caller does not wait.
    pub(super) async fn settle(&self, jobs: Vec<Job>) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (answer, answered) = oneshot::channel();
            if let Some(asks) = &*lock(&self.asks) {
                let is_suspect = false;
                drop(asks.send(Asked {
                    job,
                    is_suspect,
                    answer,
                }));
            }
            answers.push(answered);
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(answer.await.unwrap_or_else(|_| Err(gone())));
        }
        outcomes
    }

    /// Lets the broker know soon how often messages were delivered.
    pub(super) fn count(&self) {
        self.counted.notify_one();
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Commits what is left, and returns once the task has ended.
    pub(super) async fn close(&self) {
        lock(&self.asks).take();
        let task = lock(&self.task).take();
        if let Some(task) = task
            && let Err(told) = task.await
        {
            warn!(%told, "the task of a queue");
        }
    }
}

fn gone() -> Error {
    Error::conflict("the message went on: its partition is not this process's any more")
}

/// What the task works with.
struct Office<S: Bench> {
    store: Arc<Store>,
    known: Arc<Known>,
    members: Members,
    member: Arc<Member<S>>,
    registrar: Arc<Registrar>,
    transactions: Option<Transactions>,
}

/// Why a round was not done.
enum Refusal {
    /// Nothing changed.
    Undone(Error),
    /// Nothing changed, and never will: the records of these jobs are larger than their topic takes.
    TooLarge(Error, Vec<usize>),
    /// It may be done.
    Unknown(Error),
}

impl<S: Bench> Office<S> {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Asked>) {
        let registrar = Arc::clone(&self.registrar);
        let mut kept = None;
        loop {
            let mut jobs: Vec<Asked> = kept.take().into_iter().collect();
            let mut ending = false;
            if jobs.is_empty() {
                tokio::select! {
                    one = asked.recv() => match one {
                        Some(one) => jobs.push(one),
                        None => ending = true,
                    },
                    () = registrar.counted.notified() => {}
                }
            }
            let mut bytes = 0;
            while jobs.len() < AT_ONCE
                && bytes < ENOUGH_BYTES
                && let Ok(one) = asked.try_recv()
            {
                if one.job.to != To::Gone {
                    bytes += one.job.held.envelope.message.payload.len();
                }
                // What only goes need not wait for the transaction of what moves.
                if jobs.last().is_some_and(|last| moves(last) != moves(&one)) {
                    kept = Some(one);
                    break;
                }
                jobs.push(one);
            }
            self.settle(jobs).await;
            if ending || self.registrar.is_lost() {
                return;
            }
        }
    }

    /// Settles these, and answers. What cannot be settled is in hand again, as it was.
    async fn settle(&mut self, mut jobs: Vec<Asked>) {
        let until = Instant::now() + self.store.config.timeout;
        loop {
            let member = Arc::clone(&self.member);
            let turn = member.turn().lock().await;
            let (positions, left) = self.strike_off(jobs);
            jobs = left;
            let committed = self.commit(&jobs, positions.clone()).await;
            drop(turn);
            let refusal = match committed {
                Ok(()) => {
                    for one in jobs {
                        drop(one.answer.send(Ok(())));
                    }
                    return;
                }
                Err(refusal) => refusal,
            };
            let is_unknown = matches!(refusal, Refusal::Unknown(_));
            let is_too_large = matches!(refusal, Refusal::TooLarge(..));
            let error = match refusal {
                Refusal::Undone(error) | Refusal::Unknown(error) => error,
                Refusal::TooLarge(error, which) => {
                    for at in which {
                        jobs[at].is_suspect = true;
                    }
                    error
                }
            };
            if is_unknown {
                warn!(queue = %self.known.name, error = error.chain(), "the queue is taken up anew");
                self.registrar.lost.store(true, Ordering::Release);
                self.member.end();
                for one in jobs {
                    let text = error.chain();
                    drop(one.answer.send(Err(Error::unavailable(text))));
                }
                return;
            }
            if error.kind() == ErrorKind::NotFound {
                // Whichever topic it is, asking is cheap.
                for topic in [
                    &self.known.topic,
                    &self.known.later_topic,
                    &self.known.dead_topic,
                ] {
                    self.store.doubt(topic);
                    drop(self.store.partitions(topic).await);
                }
            }
            jobs = self.undo(jobs, &positions);
            if is_too_large {
                if let [one] = jobs.as_mut_slice() {
                    one.is_suspect = false;
                    if one.job.shrink(self.store.clock.now()) {
                        continue;
                    }
                } else {
                    // One batch was refused, and not which record of it is too large: each goes alone.
                    let (suspects, rest) = jobs.into_iter().partition(|one| one.is_suspect);
                    jobs = rest;
                    let suspects: Vec<Asked> = suspects;
                    for one in suspects {
                        Box::pin(self.settle(vec![one])).await;
                    }
                    continue;
                }
            }
            // While partitions move, or a node is being replaced.
            if error.kind() != ErrorKind::Invalid && Instant::now() < until {
                debug!(queue = %self.known.name, error = error.chain(), "tried again");
                sleep(PAUSE).await;
                continue;
            }
            for Asked { job, answer, .. } in jobs {
                let text = error.chain();
                self.member.shelf().put_back(job.number, job.held);
                drop(answer.send(Err(Error::unavailable(text))));
            }
            self.member.wake();
            return;
        }
    }

    /// Strikes off those that are still ours, and takes the positions that follow.
    fn strike_off(&self, jobs: Vec<Asked>) -> (Vec<(i32, i64, String)>, Vec<Asked>) {
        if self.member.is_lost() {
            // Its positions are of a topic that is not there any more.
            for one in jobs {
                drop(one.answer.send(Err(gone())));
            }
            return (Vec::new(), Vec::new());
        }
        let mut shelf = self.member.shelf();
        let lanes = shelf.lanes();
        let (ours, lost): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|one| lanes.settle(&one.job.held));
        let positions = lanes.take_dirty();
        drop(shelf);
        for one in lost {
            drop(one.answer.send(Err(gone())));
        }
        (positions, ours)
    }

    fn undo(&self, jobs: Vec<Asked>, positions: &[(i32, i64, String)]) -> Vec<Asked> {
        let mut shelf = self.member.shelf();
        let lanes = shelf.lanes();
        lanes.mark_dirty(positions);
        let (ours, lost): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .partition(|one| lanes.reopen(&one.job.held));
        drop(shelf);
        for one in lost {
            drop(one.answer.send(Err(gone())));
        }
        ours
    }

    async fn commit(
        &mut self,
        jobs: &[Asked],
        positions: Vec<(i32, i64, String)>,
    ) -> std::result::Result<(), Refusal> {
        let undone = |what: &'static str| move |told| Refusal::Undone(error::of_call(what, told));
        let list = list(&self.member.topic, &positions).map_err(undone("settle"))?;
        if jobs.iter().any(moves) {
            return self.transact(jobs, list).await;
        }
        if positions.is_empty() {
            return Ok(());
        }
        let member = Arc::clone(&self.member);
        let committed = blocking(move || {
            let committed = member.commit(&list);
            committed.map_err(|told| error::of_call("settle", told))
        });
        committed.await.map_err(Refusal::Undone)
    }

    async fn transact(
        &mut self,
        jobs: &[Asked],
        list: rdkafka::TopicPartitionList,
    ) -> std::result::Result<(), Refusal> {
        let (store, known) = (&self.store, &self.known);
        let mut envelopes = Vec::with_capacity(jobs.len());
        for Asked { job, .. } in jobs {
            let made = match job.to {
                To::Gone => continue,
                To::Queue => Ok(()),
                To::Later(_) => store.ensure_later(known).await,
                To::Dead => store.ensure_dead(known).await,
            };
            made.map_err(Refusal::Undone)?;
            let mut copy = job.held.envelope.clone();
            copy.attempts = job.attempts;
            if job.to == To::Queue {
                copy.not_before = None;
            }
            let id = copy.message.id.to_string();
            let origin = &job.held.origin;
            let left_at = || format!("{}/{}/{}", self.member.topic, origin.partition, origin.at);
            let left_at = job.is_cut.then(left_at);
            envelopes.push((job.to, id, copy, origin.raw.as_deref(), left_at));
        }
        let records: Vec<Record<'_>> = envelopes
            .iter()
            .map(|(to, id, envelope, raw, left_at)| {
                let (topic, partition) = known.place(*to);
                let key = match to {
                    // Dead letters are found, and deleted, by their id.
                    To::Dead => Some(id.as_bytes()),
                    _ => envelope::key(envelope, *raw),
                };
                let (payload, headers) = match left_at {
                    Some(left_at) => (&b""[..], envelope::of_cut(envelope, left_at)),
                    None => (
                        &envelope.message.payload[..],
                        envelope::of_queue(envelope, *raw),
                    ),
                };
                Record {
                    topic,
                    partition,
                    key,
                    payload: Some(payload),
                    headers,
                    at: None,
                }
            })
            .collect();
        if self.transactions.is_none() {
            let id = format!("{}.{}", known.topic, MessageId::new());
            let started = Transactions::start(&store.config, id, TRANSACTION).await;
            self.transactions = Some(started.map_err(Refusal::Undone)?);
        }
        let Some(group) = self.member.group() else {
            let left = Error::unavailable("kafka: the group was left");
            return Err(Refusal::Undone(left));
        };
        let Some(transactions) = &self.transactions else {
            return Err(Refusal::Undone(Error::unavailable("no producer")));
        };
        let done = transactions.run(records, Some(Positions { list, group }));
        let topics = [&known.topic, &known.later_topic, &known.dead_topic].map(String::as_str);
        match store.while_declared(&topics, done).await {
            Ok(places) => {
                for ((to, ..), place) in envelopes.iter().zip(places) {
                    match to {
                        To::Dead => known.note_dead(place.1),
                        _ => self.members.note_marked(*to, place),
                    }
                }
                Ok(())
            }
            Err(Failed::TooLarge(told, which)) => {
                let error = error::of_call("settle in a transaction", told);
                Err(Refusal::TooLarge(error, which))
            }
            Err(failed) => {
                for topic in [&known.topic, &known.later_topic, &known.dead_topic] {
                    store.doubt(topic);
                }
                let is_unknown = matches!(failed, Failed::Unknown(_));
                let error = error::of_produce("settle in a transaction", failed.told());
                Err(match is_unknown {
                    true => {
                        self.transactions = None;
                        Refusal::Unknown(error)
                    }
                    false => Refusal::Undone(error),
                })
            }
        }
    }
}

fn moves(one: &Asked) -> bool {
    one.job.to != To::Gone
}
