//! The routes port: exchanges and bindings.
//!
//! An exchange that is there is used as it is. A new one is of the kind that its name ends with, `.direct` or
//! `.fanout`, and a topic exchange otherwise. The protocol cannot list bindings, so those that were made here are
//! written down, one message each, in a queue of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use towpath_core::port::Routes;
use towpath_core::port::routes::{Binding, Publication, matches};
use towpath_core::{Error, ExchangeName, QueueName, Result, ResultExt};

use crate::broker::envelope::Envelope;

use super::envelope;
use super::error;
use super::incoming::Incoming;
use super::publisher::Letter;
use super::store::{Desk, Store, lock};

/// Where bindings are written down.
const BOOK: &str = "towpath.bindings";

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
        let desk = store
            .desk(&*store.known(&binding.queue)?)
            .await
            .context(what)?;
        let exchange = store.exchange(&binding.exchange).await.context(what)?;
        let bound = desk.incoming.channel.queue_bind(
            store.known(&binding.queue)?.wire.as_str().into(),
            exchange.into(),
            binding.pattern.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        store.link.call(&desk.open, bound).await.context(what)?;
        store.write_down(binding).await.context(what)
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        let what = || format!("unbind `{}` from `{}`", binding.queue, binding.exchange);
        check(binding)?;
        let store = &self.0;
        let known = store.known(&binding.queue)?;
        let desk = store.desk(&known).await.context(what)?;
        let exchange = store.exchange(&binding.exchange).await.context(what)?;
        let unbound = desk.incoming.channel.queue_unbind(
            known.wire.as_str().into(),
            exchange.into(),
            binding.pattern.as_str().into(),
            FieldTable::default(),
        );
        store.link.call(&desk.open, unbound).await.context(what)?;
        let _turn = store.turn.lock().await;
        let (desk, found) = store.read_book().await.context(what)?;
        store
            .close_book(&desk, &found, |one| one != binding)
            .await
            .context(what)?;
        lock(&store.bindings).remove(binding);
        Ok(())
    }

    async fn bindings(&self, exchange: &ExchangeName) -> Result<Vec<Binding>> {
        let store = &self.0;
        let _turn = store.turn.lock().await;
        let (desk, found) = store.read_book().await?;
        store.close_book(&desk, &found, |_| true).await?;
        let all: BTreeSet<Binding> = found.into_iter().map(|(binding, _)| binding).collect();
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
        let bindings = lock(&store.bindings).clone();
        let mut outcomes = Vec::with_capacity(publications.len());
        let (mut letters, mut places) = (Vec::new(), Vec::new());
        for Publication {
            routing_key,
            message,
        } in publications
        {
            let envelope = match Envelope::begin("RabbitMQ", message, store.clock.now()) {
                Ok(envelope) if envelope.not_before.is_none() => envelope,
                Ok(_) => {
                    let text = "a message that is held back cannot be routed on RabbitMQ";
                    outcomes.push(Err(Error::unsupported(text)));
                    continue;
                }
                Err(refused) => {
                    outcomes.push(Err(refused));
                    continue;
                }
            };
            let queues: BTreeSet<&QueueName> = bindings
                .iter()
                .filter(|one| one.exchange == *exchange && leads(&kind, &one.pattern, &routing_key))
                .map(|one| &one.queue)
                .collect();
            places.push(outcomes.len());
            // The broker says only whether there was any; others may have bound more.
            outcomes.push(Ok(queues.len().max(1)));
            letters.push(Letter {
                exchange: name.clone(),
                routing_key,
                properties: envelope::properties(&envelope),
                payload: envelope.message.payload,
            });
        }
        for (place, sent) in places.into_iter().zip(store.publisher.send(letters).await) {
            if let Err(error) = sent {
                outcomes[place] = Err(error).context(what);
            }
        }
        Ok(outcomes)
    }
}

impl Store {
    /// Makes sure that the exchange is there, once on each connection. Its name on the broker.
    async fn exchange(&self, exchange: &ExchangeName) -> Result<String> {
        self.check_open()?;
        let name = format!("{}{exchange}", self.config.prefix);
        let open = self.link.open().await?;
        if lock(&self.exchanges).get(&name) == Some(&open.number) {
            return Ok(name);
        }
        let channel = self.link.channel(&open).await?;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let (wire, kind) = (name.as_str().into(), kind_of(exchange));
        let declared = channel.exchange_declare(wire, kind, options, FieldTable::default());
        match self.link.ask(&open, declared).await? {
            Ok(()) => {}
            // Somebody made it in another way: it is used as it is.
            Err(told) if error::is_different(&told) => {}
            Err(told) => {
                let error = error::of_call(&open.node, told);
                self.link.give_up(&open, &error);
                return Err(error);
            }
        }
        lock(&self.exchanges).insert(name.clone(), open.number);
        Ok(name)
    }

    fn book(&self) -> String {
        format!("{}{BOOK}", self.config.prefix)
    }

    /// Writes a binding down, unless it stands there.
    async fn write_down(&self, binding: &Binding) -> Result<()> {
        let _turn = self.turn.lock().await;
        if lock(&self.bindings).contains(binding) {
            return Ok(());
        }
        let (desk, found) = self.read_book().await?;
        self.close_book(&desk, &found, |_| true).await?;
        let mut all: BTreeSet<Binding> = found.into_iter().map(|(one, _)| one).collect();
        if !all.contains(binding) {
            let text = format!(
                "{}\n{}\n{}",
                binding.exchange, binding.queue, binding.pattern
            );
            let letter = Letter {
                exchange: String::new(),
                routing_key: self.book(),
                properties: BasicProperties::default().with_delivery_mode(2),
                payload: Bytes::from(text),
            };
            for sent in self.publisher.send(vec![letter]).await {
                sent?;
            }
            all.insert(binding.clone());
        }
        lock(&self.bindings).extend(all);
        Ok(())
    }

    async fn read_book(&self) -> Result<(Desk, Vec<(Binding, lapin::Acker)>)> {
        self.check_open()?;
        let open = self.link.open().await?;
        self.declare(&open, &self.book(), FieldTable::default())
            .await?;
        let channel = self.link.channel(&open).await?;
        let desk = Desk {
            open,
            incoming: Incoming::in_any_order(channel),
            counts_returns: true,
        };
        let mut found = Vec::new();
        loop {
            let get = || {
                desk.incoming
                    .channel
                    .basic_get(self.book().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..8).map(|_| get()));
            let mut came = false;
            for answer in self.link.ask(&desk.open, answers).await? {
                if let Some(message) = self.link.call(&desk.open, async { answer }).await? {
                    came = true;
                    let arrival = message.delivery;
                    found.extend(read_binding(&arrival.data).map(|one| (one, arrival.acker)));
                }
            }
            if !came {
                return Ok((desk, found));
            }
        }
    }

    /// Puts back the bindings that stay.
    async fn close_book(
        &self,
        desk: &Desk,
        found: &[(Binding, lapin::Acker)],
        stays: impl Fn(&Binding) -> bool,
    ) -> Result<()> {
        for (binding, acker) in found {
            if stays(binding) {
                let nack = acker.nack(BasicNackOptions {
                    requeue: true,
                    ..BasicNackOptions::default()
                });
                self.link.call(&desk.open, nack).await?;
            } else {
                let ack = acker.ack(BasicAckOptions::default());
                self.link.call(&desk.open, ack).await?;
            }
        }
        self.settle_down(desk, &desk.incoming.channel).await
    }
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
            "`{}` is a direct exchange, and `{}` has wildcards; name the exchange otherwise",
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
