//! The steps that the ports offer, each over one script.

use std::pin::Pin;

use towpath_core::Result;
use towpath_core::port::effects::Transaction;
use towpath_core::port::kv::Op;
use towpath_core::port::queue::Selection;
use towpath_core::port::routes::Publication;
use towpath_core::port::stream::{ReadRequest, Start, Trim};

use super::super::*;
use super::fixture::{Fixture, bucket, exchange, group, lines};

type Outcome = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// One step, as it is taken on the database that is put back.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) run: fn(Backend, Fixture) -> Outcome,
    /// Parameters of the URL.
    pub(super) parameters: &'static str,
    /// Number of faults that must make it fail, or they do not reach it.
    pub(super) at_least: u32,
}

impl Step {
    /// Whether it is a round of tending that it waits for.
    pub(super) const fn tends(&self) -> bool {
        !self.parameters.is_empty()
    }

    /// Whether faults of this key are tried.
    pub(super) fn touches(&self, key: &str) -> bool {
        match self.name {
            // One script for each queue, one after the other.
            "give_up_a_consumer" => !key.contains("other"),
            "tend_a_queue" => key.contains("messages"),
            "tend_a_stream" => key.contains("lines"),
            _ => true,
        }
    }
}

macro_rules! steps {
    ($list:ident: $($name:ident $at_least:literal;)*) => {
        pub(super) const $list: &[Step] = &[$(Step {
            name: stringify!($name),
            run: |backend, fixture| Box::pin($name(backend, fixture)),
            parameters: "",
            at_least: $at_least,
        }),*];
    };
}

steps! { QUEUE: enqueue_some 40; lease_some 80; give_up_a_consumer 40; }
steps! { SETTLE: settle_all_ways 60; extend_one 15; }
steps! { OPERATE: peek 30; count 30; purge 50; list_dead_letters 8; redrive 40; drop_dead 20; }
steps! { STREAM: append_some 10; make_a_group 6; seek_a_group 8; delete_a_group 8; read_new 15; commit_some 10; claim_some 15; leave 8; trim_finished 4; trim_all 8; stream_stats 4; range 2; }
steps! { EFFECTS: commit_keys 10; commit_keys_together 10; take_limits 8; publish_some 40; apply_everything 80; }

pub(super) const MAINTAIN: &[Step] = &[
    Step {
        name: "tend_a_queue",
        run: |backend, _| Box::pin(tend_a_queue(backend)),
        parameters: "consumer_timeout=1s",
        at_least: 20,
    },
    Step {
        name: "tend_a_stream",
        run: |backend, _| Box::pin(tend_a_stream(backend)),
        parameters: "consumer_timeout=1s",
        at_least: 10,
    },
];

/// The first of the outcomes that is an error.
fn all<T>(outcomes: Vec<Result<T>>) -> Result<()> {
    outcomes
        .into_iter()
        .find_map(Result::err)
        .map_or(Ok(()), Err)
}

fn with_dedup(payload: &str, id: &str) -> NewMessage {
    NewMessage {
        dedup_id: Some(id.to_owned()),
        ..NewMessage::new(payload.to_owned())
    }
}

fn delayed(payload: &str) -> NewMessage {
    let later = towpath_core::Timestamp::from_millis(1 << 45);
    NewMessage {
        not_before: Some(later),
        ..NewMessage::new(payload.to_owned())
    }
}

fn some() -> Vec<NewMessage> {
    vec![
        NewMessage::new("plain"),
        with_dedup("new", "new"),
        with_dedup("again", "known"),
        delayed("delayed"),
    ]
}

async fn enqueue_some(backend: Backend, _: Fixture) -> Result<()> {
    all(queue_of(&backend).enqueue(&messages(), some()).await?)
}

async fn lease_some(backend: Backend, _: Fixture) -> Result<()> {
    try_lease(&queue_of(&backend), "one", Duration::ZERO)
        .await
        .map(drop)
}

async fn give_up_a_consumer(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend)
        .disconnect(&consumer("one"))
        .await
        .map(drop)
}

async fn settle_all_ways(backend: Backend, fixture: Fixture) -> Result<()> {
    all(queue_of(&backend).settle(settlements(&fixture)).await?)
}

fn settlements(fixture: &Fixture) -> Vec<Settlement> {
    let retry = |after: u64| Disposition::Retry {
        after: Duration::from_secs(after),
        error: "no".to_owned(),
    };
    let dead = Disposition::DeadLetter {
        reason: "no".to_owned(),
    };
    let dispositions = [Disposition::Ack, retry(0), retry(60), dead];
    let receipts = fixture.receipts.iter().cloned().zip(dispositions);
    receipts
        .map(|(receipt, disposition)| Settlement {
            receipt,
            disposition,
        })
        .collect()
}

async fn extend_one(backend: Backend, fixture: Fixture) -> Result<()> {
    all(queue_of(&backend)
        .extend(&fixture.receipts, Duration::from_secs(60))
        .await?)
}

async fn peek(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend).peek(&messages(), 100).await.map(drop)
}

async fn count(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend).stats(&messages()).await.map(drop)
}

async fn purge(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend).purge(&messages()).await.map(drop)
}

async fn list_dead_letters(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend)
        .dead_letters(&messages(), None, 10)
        .await
        .map(drop)
}

async fn redrive(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend)
        .redrive(&messages(), &Selection::All)
        .await
        .map(drop)
}

async fn drop_dead(backend: Backend, _: Fixture) -> Result<()> {
    queue_of(&backend)
        .drop_dead(&messages(), &Selection::All)
        .await
        .map(drop)
}

fn stream(backend: &Backend) -> Arc<dyn towpath_core::port::Stream> {
    backend.stream.clone().expect("redis has streams")
}

async fn append_some(backend: Backend, _: Fixture) -> Result<()> {
    let entries = vec![NewMessage::new("plain"), with_dedup("new", "new")];
    all(stream(&backend).append(&lines(), entries).await?)
}

async fn make_a_group(backend: Backend, _: Fixture) -> Result<()> {
    let other = towpath_core::GroupName::new("other")?;
    stream(&backend)
        .create_group(&lines(), &other, Start::End)
        .await
}

async fn seek_a_group(backend: Backend, fixture: Fixture) -> Result<()> {
    stream(&backend)
        .seek(&lines(), &group(), Start::After(fixture.entries[2]))
        .await
}

async fn delete_a_group(backend: Backend, _: Fixture) -> Result<()> {
    stream(&backend).delete_group(&lines(), &group()).await
}

async fn read_new(backend: Backend, _: Fixture) -> Result<()> {
    let request = ReadRequest {
        stream: lines(),
        group: group(),
        consumer: consumer("one"),
        max: 10,
        wait: Duration::ZERO,
    };
    stream(&backend).read(request).await.map(drop)
}

async fn commit_some(backend: Backend, fixture: Fixture) -> Result<()> {
    stream(&backend)
        .commit(&lines(), &group(), &fixture.entries[1..5])
        .await
}

async fn claim_some(backend: Backend, _: Fixture) -> Result<()> {
    let (stream, who) = (stream(&backend), consumer("one"));
    let claimed = stream
        .claim(&lines(), &group(), &who, Duration::ZERO, 10)
        .await;
    claimed.map(drop)
}

async fn leave(backend: Backend, _: Fixture) -> Result<()> {
    stream(&backend)
        .disconnect(&consumer("one"))
        .await
        .map(drop)
}

async fn trim_finished(backend: Backend, _: Fixture) -> Result<()> {
    stream(&backend)
        .trim(&lines(), Trim::Finished)
        .await
        .map(drop)
}

async fn trim_all(backend: Backend, _: Fixture) -> Result<()> {
    stream(&backend)
        .trim(&lines(), Trim::KeepLast(1))
        .await
        .map(drop)
}

async fn stream_stats(backend: Backend, _: Fixture) -> Result<()> {
    stream(&backend).stats(&lines()).await.map(drop)
}

async fn range(backend: Backend, _: Fixture) -> Result<()> {
    stream(&backend).range(&lines(), None, 10).await.map(drop)
}

fn ops() -> Vec<Op> {
    vec![
        Op::Put {
            key: "made".to_owned(),
            value: "x".into(),
            ttl: Some(Duration::from_secs(60)),
        },
        Op::Add {
            key: "counter".to_owned(),
            delta: 1,
            min: 0,
            max: 9,
        },
        Op::SetField {
            key: "fields".to_owned(),
            field: "two".to_owned(),
            value: "2".into(),
        },
        Op::Expire {
            key: "fields".to_owned(),
            ttl: Some(Duration::from_secs(60)),
        },
        Op::Delete {
            key: "value".to_owned(),
        },
    ]
}

async fn commit_keys(backend: Backend, _: Fixture) -> Result<()> {
    backend
        .kv
        .expect("redis has keys")
        .commit(ops())
        .await
        .map(drop)
}

/// Callers with the same ops: the last two share a script, and what fails one of them fails each.
async fn commit_keys_together(backend: Backend, _: Fixture) -> Result<()> {
    let kv = backend.kv.expect("redis has keys");
    let calls = (0..3).map(|_| kv.commit(ops()));
    let outcomes = futures_util::future::join_all(calls).await;
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert!([0, outcomes.len()].contains(&failed), "{outcomes:?}");
    outcomes
        .into_iter()
        .try_for_each(|outcome| outcome.map(drop))
}

async fn take_limits(backend: Backend, _: Fixture) -> Result<()> {
    let limits = backend.rate_limit.expect("redis has limits");
    limits
        .take(vec![bucket("one"), bucket("two")])
        .await
        .map(drop)
}

fn publication(message: NewMessage) -> Publication {
    Publication {
        routing_key: "a.b".to_owned(),
        message,
    }
}

async fn publish_some(backend: Backend, _: Fixture) -> Result<()> {
    let all_of = some().into_iter().map(publication).collect();
    all(backend
        .routes
        .expect("redis has routes")
        .publish(&exchange(), all_of)
        .await?)
}

async fn apply_everything(backend: Backend, fixture: Fixture) -> Result<()> {
    let transaction = Transaction {
        kv: ops(),
        enqueue: vec![(messages(), with_dedup("new", "new"))],
        publish: vec![(exchange(), publication(NewMessage::new("routed")))],
        append: vec![(lines(), with_dedup("entry", "new"))],
        settle: settlements(&fixture),
        commit: vec![(lines(), group(), fixture.entries[1..4].to_vec())],
    };
    backend
        .effects
        .expect("redis has effects")
        .apply(transaction)
        .await
        .map(drop)
}

/// Longer than the pause between two rounds of tending, whose outcome no call returns.
async fn rounds() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

async fn tend_a_queue(backend: Backend) -> Result<()> {
    // From then on the process knows the queue.
    _ = queue_of(&backend).resume(&messages()).await;
    rounds().await;
    Ok(())
}

async fn tend_a_stream(backend: Backend) -> Result<()> {
    _ = stream(&backend)
        .create_group(&lines(), &group(), Start::Beginning)
        .await;
    rounds().await;
    Ok(())
}
