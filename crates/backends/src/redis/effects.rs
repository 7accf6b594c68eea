//! The effects port: one script checks everything, then writes everything.

use async_trait::async_trait;
use redis::Value;
use towpath_core::port::effects::{Effects, Outcome, Transaction};
use towpath_core::port::kv::Committed;
use towpath_core::port::stream::DEDUP_WINDOW;
use towpath_core::port::stream::check_entry;
use towpath_core::{Error, QueueName, Result, ResultExt};

use super::queue::{add_message, add_settlement, queue_is_full};
use super::routes::unroutable;
use super::store::{Store, millis};
use super::stream::{add_entry, id_text};
use super::{kv, reply, script};

#[async_trait]
impl Effects for Store {
    async fn apply(&self, transaction: Transaction) -> Result<Outcome> {
        let mut keys: Vec<String> = self.keys_of(&transaction.kv)?.into_iter().collect();
        for queue in transaction
            .settle
            .iter()
            .map(|one| &one.receipt.queue)
            .chain(transaction.enqueue.iter().map(|(queue, _)| queue))
        {
            keys.push(self.queue(queue).await?.keys.list.clone());
        }
        if !transaction.publish.is_empty() {
            self.servers.check_any_together()?;
        }
        for (exchange, _) in &transaction.publish {
            keys.push(self.keys.bindings(exchange.as_str()));
        }
        let appended = transaction.append.iter().map(|(stream, _)| stream);
        for stream in appended.chain(transaction.commit.iter().map(|(stream, ..)| stream)) {
            keys.push(self.stream(stream).await?.keys.list.clone());
        }
        if keys.is_empty() {
            return Ok(Outcome::Applied(Vec::new()));
        }
        let messages = transaction.enqueue.iter().map(|(_, message)| message);
        let published = transaction.publish.iter().map(|(_, one)| &one.message);
        for message in messages.chain(published) {
            message.check()?;
        }
        for (_, entry) in &transaction.append {
            check_entry(entry)?;
        }
        let answer = self
            .servers
            .run(self.effects_call(&transaction, keys)?)
            .await
            .context(|| "apply effects")?;
        self.wake_all();
        outcome(&transaction, answer)
    }
}

impl Store {
    fn effects_call(&self, transaction: &Transaction, keys: Vec<String>) -> Result<script::Call> {
        let mut call = script::EFFECTS.on(keys);
        for part in self.keys.parts() {
            call.arg(part);
        }
        call.arg(transaction.kv.len());
        for op in &transaction.kv {
            for arg in self.args_of(op)? {
                call.arg(arg);
            }
        }
        call.arg(transaction.settle.len());
        for settlement in &transaction.settle {
            call.arg(settlement.receipt.queue.as_str());
            add_settlement(&mut call, &settlement.receipt, &settlement.disposition);
        }
        call.arg(transaction.enqueue.len());
        for (queue, message) in &transaction.enqueue {
            call.arg(queue.as_str());
            add_message(&mut call, message)?;
        }
        call.arg(transaction.publish.len());
        for (exchange, publication) in &transaction.publish {
            call.arg(self.keys.bindings(exchange.as_str()))
                .arg(&publication.routing_key);
            add_message(&mut call, &publication.message)?;
        }
        call.arg(transaction.append.len());
        for (stream, entry) in &transaction.append {
            let keys = self.keys.named(stream.as_str())?;
            call.arg(keys.list)
                .arg(keys.side)
                .arg(&self.config.field)
                .arg(millis(DEDUP_WINDOW));
            add_entry(&mut call, entry)?;
        }
        call.arg(
            transaction
                .commit
                .iter()
                .map(|(.., offsets)| offsets.len())
                .sum::<usize>(),
        );
        for (stream, group, offsets) in &transaction.commit {
            let keys = self.keys.named(stream.as_str())?;
            for offset in offsets {
                call.arg(&keys.list)
                    .arg(&keys.side)
                    .arg(group.as_str())
                    .arg(id_text(*offset));
            }
        }
        Ok(call)
    }
}

fn outcome(transaction: &Transaction, answer: Value) -> Result<Outcome> {
    let parts = reply::list(answer.clone())?;
    let part = |at: usize| reply::text(parts.get(at).cloned().unwrap_or_default());
    match part(0)?.as_str() {
        "stale" => Err(Error::conflict(format!(
            "lease of message number {} of `{}` expired and the message was delivered again or returned",
            part(2)?,
            part(1)?
        ))),
        "full" => Err(queue_is_full(&QueueName::new(part(1)?)?)),
        "unroutable" => {
            let at = reply::number(parts.get(1).cloned().unwrap_or_default())?;
            let (exchange, publication) = usize::try_from(at)
                .ok()
                .and_then(|at| transaction.publish.get(at))
                .ok_or_else(|| Error::corrupt("a script named an unknown publication"))?;
            Err(unroutable(exchange.as_str(), &publication.routing_key))
        }
        _ => Ok(match kv::committed(&transaction.kv, answer)? {
            Committed::Applied(values) => Outcome::Applied(values),
            Committed::Refused { index, current } => Outcome::Refused { index, current },
        }),
    }
}
