//! The routes port: exchanges and bindings.
//!
//! An existing exchange is used as it is. A new one has the kind of its suffix, `.direct` or
//! `.fanout`, and is a topic exchange otherwise. AMQP cannot list bindings, so those made here are
//! recorded, one message each, in a queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use towpath_core::port::Routes;
use towpath_core::port::routes::{Binding, Publication, matches};
use towpath_core::{Error, ExchangeName, QueueName, Result, ResultExt};
use tracing::warn;

use crate::broker::envelope::Envelope;

use super::consumer_channel::ConsumerChannel;
use super::declare::PAUSE;
use super::envelope;
use super::error;
use super::publisher::{Publish, PublishError, PublishResult};
use super::store::{QueueChannel, Store, lock};

/// The queue that records bindings.
const BINDINGS: &str = "towpath.bindings";

/// Longest pattern in bytes. Source: AMQP 0-9-1, short strings.
const MAX_PATTERN_BYTES: usize = 255;

/// The exchanges of a broker.
pub(super) struct Exchanges(pub(super) Arc<Store>);

#[async_trait]
impl Routes for Exchanges {
    async fn bind(&self, binding: &Binding) -> Result<()> {
        let what = || format!("bind `{}` to `{}`", binding.queue, binding.exchange);
        check(binding)?;
        let store = &self.0;
        let handle = store.handle(&binding.queue)?;
        let queue_channel = store.queue_channel(&handle).await.context(what)?;
        store
            .bind_on(&queue_channel.open, &handle, binding)
            .await
            .context(what)?;
        handle.is_declared.store(true, Ordering::Release);
        lock(&store.bound).insert(binding.clone());
        store.write_down(binding).await.context(what)
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        let what = || format!("unbind `{}` from `{}`", binding.queue, binding.exchange);
        check(binding)?;
        let store = &self.0;
        let handle = store.handle(&binding.queue)?;
        let queue_channel = store.queue_channel(&handle).await.context(what)?;
        let exchange = store.exchange(&binding.exchange).await.context(what)?;
        lock(&store.bound).remove(binding);
        let channel = store
            .broker
            .channel(&queue_channel.open)
            .await
            .context(what)?;
        let unbound = channel.queue_unbind(
            handle.wire.as_str().into(),
            exchange.into(),
            binding.pattern.as_str().into(),
            FieldTable::default(),
        );
        store
            .broker
            .call(&queue_channel.open, unbound)
            .await
            .context(what)?;
        let _turn = store.turn.lock().await;
        let (queue_channel, found) = store.read_book().await.context(what)?;
        store
            .close_book(&queue_channel, found, |one| one != binding)
            .await
            .context(what)?;
        lock(&store.bindings).remove(binding);
        Ok(())
    }

    async fn bindings(&self, exchange: &ExchangeName) -> Result<Vec<Binding>> {
        let store = &self.0;
        let _turn = store.turn.lock().await;
        let (queue_channel, found) = store.read_book().await?;
        let all = store.close_book(&queue_channel, found, |_| true).await?;
        lock(&store.bindings).clone_from(&all);
        Ok(all
            .into_iter()
            .filter(|one| one.exchange == *exchange)
            .collect())
    }

    async fn publish(
        &self,
        exchange: &ExchangeName,
        publications: Vec<Publication>,
    ) -> Result<Vec<Result<usize>>> {
        let what = || format!("publish to `{exchange}`");
        let store = &self.0;
        let name = store.exchange(exchange).await.context(what)?;
        let kind = kind_of(exchange);
        let queues_of = |routing_key: &str| {
            let bindings = lock(&store.bindings);
            let matching = bindings
                .iter()
                .filter(|one| one.exchange == *exchange && leads(&kind, &one.pattern, routing_key));
            matching
                .map(|one| &one.queue)
                .collect::<BTreeSet<_>>()
                .len()
        };
        let mut outcomes = Vec::with_capacity(publications.len());
        let (mut publishes, mut places) = (Vec::new(), Vec::new());
        for Publication {
            routing_key,
            message,
        } in publications
        {
            let envelope = match Envelope::begin("RabbitMQ", message, store.clock.now()) {
                Ok(envelope) if envelope.not_before.is_none() => envelope,
                Ok(_) => {
                    let text =
                        "RabbitMQ cannot route a delayed message; publish it without a delay";
                    outcomes.push(Err(Error::unsupported(text)));
                    continue;
                }
                Err(refused) => {
                    outcomes.push(Err(refused));
                    continue;
                }
            };
            places.push(outcomes.len());
            // The broker confirms only that a binding matched; other programs may have bound more.
            outcomes.push(Ok(queues_of(&routing_key).max(1)));
            publishes.push(Publish {
                exchange: name.clone(),
                routing_key,
                properties: envelope::properties(&envelope),
                payload: envelope.message.payload,
            });
        }
        for (place, sent) in places
            .into_iter()
            .zip(store.route(exchange, publishes).await)
        {
            if let Err(lost) = sent {
                outcomes[place] = Err(lost.into_error()).context(what);
            }
        }
        Ok(outcomes)
    }
}

impl Store {
    /// Publishes to an exchange; a missing exchange or binding is declared again, and the messages sent again.
    async fn route(&self, exchange: &ExchangeName, publishes: Vec<Publish>) -> Vec<PublishResult> {
        let began = Instant::now();
        let publishes: Arc<[Publish]> = publishes.into();
        let mut outcomes = self.publisher.send_batched(Arc::clone(&publishes)).await;
        let kind = kind_of(exchange);
        let is_ours = |publish: &Publish| {
            let bound = lock(&self.bound);
            let mut of_exchange = bound.iter().filter(|one| one.exchange == *exchange);
            of_exchange.any(|one| leads(&kind, &one.pattern, &publish.routing_key))
        };
        let sent = publishes.iter().zip(&outcomes).enumerate();
        let lost: Vec<usize> = sent
            .filter(|(_, (publish, sent))| match sent {
                Err(PublishError::NoExchange(_)) => true,
                // Without a matching binding of ours nothing is missing.
                Err(PublishError::Returned(_)) => is_ours(publish),
                _ => false,
            })
            .map(|(at, _)| at)
            .collect();
        if lost.is_empty() {
            return outcomes;
        }
        match self.restore(exchange, began).await {
            Ok(true) => {
                let again: Vec<&Publish> = lost.iter().map(|at| &publishes[*at]).collect();
                for (at, sent) in lost.iter().zip(self.publisher.send(&again).await) {
                    outcomes[*at] = sent;
                }
            }
            Ok(false) => {}
            Err(error) => {
                let text = error.chain();
                for at in lost {
                    outcomes[at] = Err(PublishError::Failed(Error::unavailable(text.clone())));
                }
            }
        }
        outcomes
    }

    /// Declares an exchange and its bindings again after one was found missing after `since`. Returns whether
    /// to retry.
    async fn restore(&self, exchange: &ExchangeName, since: Instant) -> Result<bool> {
        let name = format!("{}{exchange}", self.config.prefix);
        let mut restored = self.restored.lock().await;
        if let Some(at) = restored.get(&name) {
            if *at > since {
                return Ok(true);
            }
            if at.elapsed() < PAUSE {
                return Ok(false);
            }
        }
        self.forget_exchange(exchange);
        let bound: Vec<Binding> = {
            let bound = lock(&self.bound);
            let of_exchange = bound.iter().filter(|one| one.exchange == *exchange);
            of_exchange.cloned().collect()
        };
        self.exchange(exchange).await?;
        for binding in &bound {
            let handle = self.handle(&binding.queue)?;
            self.declare_again(&handle, since).await?;
            let queue_channel = self.queue_channel(&handle).await?;
            self.bind_on(&queue_channel.open, &handle, binding).await?;
            lock(&self.bindings).remove(binding);
            self.write_down(binding).await?;
        }
        restored.insert(name, Instant::now());
        warn!(%exchange, bindings = bound.len(), "exchange or binding missing; declared again");
        Ok(true)
    }

    /// Makes the next use check the exchange.
    pub(super) fn forget_exchange(&self, exchange: &ExchangeName) {
        let name = format!("{}{exchange}", self.config.prefix);
        if let Some(number) = lock(&self.exchanges).get_mut(&name) {
            *number = 0;
        }
    }

    /// Declares the exchange, once per connection. Returns its name on the broker.
    pub(super) async fn exchange(&self, exchange: &ExchangeName) -> Result<String> {
        self.check_open()?;
        let name = format!("{}{exchange}", self.config.prefix);
        let open = self.broker.open().await?;
        let before = lock(&self.exchanges).get(&name).copied();
        if before == Some(open.number) {
            return Ok(name);
        }
        // Passively first: a user without the permission to declare it can use an existing one.
        let passive = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        for options in [passive, durable] {
            let channel = self.broker.channel(&open).await?;
            let (wire, kind) = (name.as_str().into(), kind_of(exchange));
            let declared = channel.exchange_declare(wire, kind, options, FieldTable::default());
            match self.broker.ask(&open, declared).await? {
                Ok(()) => {
                    if !options.passive && before.is_some() {
                        warn!(%exchange, node = open.node, "exchange missing; declared again");
                    }
                    break;
                }
                Err(error) if options.passive && error::is_not_found(&error) => {}
                // Another program declared it meanwhile with other properties: it is used as it is.
                Err(error) if error::is_different(&error) => break,
                Err(error) => return Err(self.broker.failed(&open, error)),
            }
        }
        lock(&self.exchanges).insert(name.clone(), open.number);
        Ok(name)
    }

    fn book(&self) -> String {
        format!("{}{BINDINGS}", self.config.prefix)
    }

    /// Records a binding, unless it is recorded.
    async fn write_down(&self, binding: &Binding) -> Result<()> {
        let _turn = self.turn.lock().await;
        if lock(&self.bindings).contains(binding) {
            return Ok(());
        }
        let (queue_channel, found) = match self.read_book().await {
            // A user without the permission to declare the queue works without the record.
            Err(error) if error::is_permission(&error) => return Ok(()),
            read => read?,
        };
        let mut all = self.close_book(&queue_channel, found, |_| true).await?;
        if !all.contains(binding) {
            for sent in self.publisher.send(&[&self.entry(binding)]).await {
                sent.map_err(PublishError::into_error)?;
            }
            all.insert(binding.clone());
        }
        lock(&self.bindings).extend(all);
        Ok(())
    }

    fn entry(&self, binding: &Binding) -> Publish {
        let text = format!(
            "{}\n{}\n{}",
            binding.exchange, binding.queue, binding.pattern
        );
        Publish {
            exchange: String::new(),
            routing_key: self.book(),
            properties: BasicProperties::default().with_delivery_mode(2),
            payload: Bytes::from(text),
        }
    }

    async fn read_book(&self) -> Result<(QueueChannel, Vec<Entry>)> {
        self.check_open()?;
        let open = self.broker.open().await?;
        self.declare_side(&open, &self.book(), self.side()).await?;
        let channel = self.broker.channel(&open).await?;
        let queue_channel = QueueChannel {
            open,
            consumer_channel: ConsumerChannel::in_any_order(channel),
            renew_after: None,
        };
        let mut found = Vec::new();
        loop {
            let get = || {
                queue_channel
                    .consumer_channel
                    .channel
                    .basic_get(self.book().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..8).map(|_| get()));
            let mut came = false;
            for answer in self.broker.ask(&queue_channel.open, answers).await? {
                if let Some(message) = self
                    .broker
                    .call(&queue_channel.open, async { answer })
                    .await?
                {
                    came = true;
                    let arrival = message.delivery;
                    found.extend(read_binding(&arrival.data).map(|binding| Entry {
                        binding,
                        returns: envelope::returns(&arrival.properties).unwrap_or(0),
                        acker: arrival.acker,
                    }));
                }
            }
            if !came {
                return Ok((queue_channel, found));
            }
        }
    }

    /// Requeues the bindings that stay, once each.
    async fn close_book(
        &self,
        queue_channel: &QueueChannel,
        found: Vec<Entry>,
        stays: impl Fn(&Binding) -> bool,
    ) -> Result<BTreeSet<Binding>> {
        let mut all = BTreeSet::new();
        for entry in found {
            let Entry {
                binding,
                returns,
                acker,
            } = entry;
            let stays = stays(&binding) && all.insert(binding.clone());
            if stays && returns == 0 {
                let nack = acker.nack(BasicNackOptions {
                    requeue: true,
                    ..BasicNackOptions::default()
                });
                self.broker.call(&queue_channel.open, nack).await?;
                continue;
            }
            if stays {
                // The broker may limit requeues: a copy starts from zero.
                for sent in self.publisher.send(&[&self.entry(&binding)]).await {
                    sent.map_err(PublishError::into_error)?;
                }
            }
            let ack = acker.ack(BasicAckOptions::default());
            self.broker.call(&queue_channel.open, ack).await?;
        }
        self.flush(queue_channel, &queue_channel.consumer_channel.channel)
            .await?;
        Ok(all)
    }
}

/// A recorded binding.
struct Entry {
    binding: Binding,
    returns: u32,
    acker: lapin::Acker,
}

fn check(binding: &Binding) -> Result<()> {
    let wild = |word: &str| word == "*" || word == "#";
    if binding.pattern.len() > MAX_PATTERN_BYTES {
        return Err(Error::invalid(format!(
            "a pattern of {} bytes is over the limit of {MAX_PATTERN_BYTES}",
            binding.pattern.len()
        )));
    }
    if kind_of(&binding.exchange) == ExchangeKind::Direct && binding.pattern.split('.').any(wild) {
        return Err(Error::invalid(format!(
            "direct exchange `{}` cannot match the wildcards of `{}`; rename the exchange",
            binding.exchange, binding.pattern
        )));
    }
    Ok(())
}

fn kind_of(exchange: &ExchangeName) -> ExchangeKind {
    let name = exchange.as_str();
    if name.ends_with(".direct") {
        ExchangeKind::Direct
    } else if name.ends_with(".fanout") {
        ExchangeKind::Fanout
    } else {
        ExchangeKind::Topic
    }
}

fn leads(kind: &ExchangeKind, pattern: &str, routing_key: &str) -> bool {
    match kind {
        ExchangeKind::Direct => pattern == routing_key,
        ExchangeKind::Fanout => true,
        _ => matches(pattern, routing_key),
    }
}

fn read_binding(text: &[u8]) -> Option<Binding> {
    let mut lines = std::str::from_utf8(text).ok()?.splitn(3, '\n');
    Some(Binding {
        exchange: ExchangeName::new(lines.next()?).ok()?,
        queue: QueueName::new(lines.next()?).ok()?,
        pattern: lines.next()?.to_owned(),
    })
}
