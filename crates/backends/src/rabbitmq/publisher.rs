//! Publishing with confirms: a message counts once the broker confirmed it and routed it to a queue.
//!
//! Each call, or batch of calls, has its own channel. The client attaches a returned message to the confirm that it reads
//! next, so only when all confirms of a channel are in is it certain which of its messages were returned.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Semaphore;
use towpath_core::{Error, Result};

use super::connection::{BrokerConnection, OpenConnection};
use super::error;
use super::publish_batcher::PublishBatcher;
use super::quorum::QuorumCheck;
use super::store::lock;

/// Messages of one call that wait for their confirm.
pub(super) const WINDOW: usize = 256;

/// Calls at once, each on its channel.
const CHANNELS: usize = 128;

/// Retry time for a broker out of memory or disk, or a full queue.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Wait for a confirm after which the quorum is checked.
const DOUBT: Duration = Duration::from_millis(1_500);

/// A message to publish, with exchange and routing key.
#[derive(Clone)]
pub(super) struct Publish {
    /// Empty for the queue whose name is the routing key.
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) payload: Bytes,
}

/// Why a message was not published.
pub(super) enum PublishError {
    /// No queue matched.
    Returned(String),
    /// Its exchange is missing; of other messages of the call it is unknown whether they arrived.
    NoExchange(String),
    /// The broker refused it, or did not answer.
    Failed(Error),
}

impl PublishError {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Returned(text) | Self::NoExchange(text) => Error::not_found(text),
            Self::Failed(error) => error,
        }
    }
}

/// Outcome of one message.
pub(super) type PublishResult = std::result::Result<(), PublishError>;

/// The sending side.
pub(super) struct Publisher {
    pub(super) broker: BrokerConnection,
    quorum: Arc<QuorumCheck>,
    /// Channels with confirms on which everything is confirmed, with the numbers of their connections.
    idle: Mutex<Vec<(u64, Channel)>>,
    turns: Semaphore,
    pub(super) batcher: PublishBatcher,
}

impl Publisher {
    pub(super) fn new(broker: BrokerConnection, quorum: Arc<QuorumCheck>) -> Self {
        Self {
            broker,
            quorum,
            idle: Mutex::default(),
            turns: Semaphore::new(CHANNELS),
            batcher: PublishBatcher::default(),
        }
    }

    /// Publishes messages. One outcome each.
    pub(super) async fn send(&self, publishes: &[&Publish]) -> Vec<PublishResult> {
        if publishes.is_empty() {
            return Vec::new();
        }
        let began = Instant::now();
        let (mut outcomes, refused) = self.send_once(publishes).await;
        if refused.is_empty() {
            return outcomes;
        }
        // RabbitMQ 3.10 keeps refusing on a channel that met a queue without a leader; another channel waits for it.
        let again: Vec<&Publish> = refused.iter().map(|at| publishes[*at]).collect();
        let (sent, still) = self.send_once(&again).await;
        for (at, sent) in refused.iter().zip(sent) {
            outcomes[*at] = sent;
        }
        // A nack has no reason: the queue lacks its majority, or is full.
        if !still.is_empty()
            && let Err(error) = self.quorum.check_since(began).await
        {
            for at in still {
                outcomes[refused[at]] =
                    Err(PublishError::Failed(Error::unavailable(error.chain())));
            }
        }
        outcomes
    }

    /// Outcomes, and the indexes of the refused messages.
    async fn send_once(&self, publishes: &[&Publish]) -> (Vec<PublishResult>, Vec<usize>) {
        let mut call = Call {
            publishes,
            answers: publishes.iter().map(|_| None).collect(),
            returned: Vec::new(),
            refused: Vec::new(),
        };
        let failed = self.send_on_a_channel(&mut call).await.err();
        let refused = std::mem::take(&mut call.refused);
        (call.outcomes(failed), refused)
    }

    async fn send_on_a_channel(&self, call: &mut Call<'_>) -> Result<()> {
        let _turn = self.turns.acquire().await;
        let open = self.broker.open().await?;
        if let Some(why) = self.broker.blocked() {
            let text = format!("rabbitmq at `{}` blocks publishers: {why}", open.node);
            return Err(Error::overloaded(text, RETRY_AFTER));
        }
        let channel = self.channel(&open).await?;
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let mut underway = FuturesUnordered::new();
        for (at, publish) in call.publishes.iter().enumerate() {
            while underway.len() >= WINDOW {
                self.next(&open, call, &mut underway).await?;
            }
            let sent = channel.basic_publish(
                publish.exchange.as_str().into(),
                publish.routing_key.as_str().into(),
                options,
                &publish.payload,
                publish.properties.clone(),
            );
            // Polled first in this order, in which their frames are written together.
            underway.push(async move {
                let answer = match sent.await {
                    Ok(confirm) => confirm.await,
                    Err(error) => Err(error),
                };
                (at, answer)
            });
        }
        while !underway.is_empty() {
            self.next(&open, call, &mut underway).await?;
        }
        drop(underway);
        if channel.status().connected() && call.refused.is_empty() {
            lock(&self.idle).push((open.number, channel));
        }
        Ok(())
    }

    /// Reads one confirm.
    async fn next(
        &self,
        open: &OpenConnection,
        call: &mut Call<'_>,
        underway: &mut FuturesUnordered<impl Future<Output = (usize, lapin::Result<Confirmation>)>>,
    ) -> Result<()> {
        let next = match tokio::time::timeout(DOUBT, underway.next()).await {
            Ok(next) => next,
            Err(_) => {
                if self.broker.blocked().is_none() {
                    self.quorum.check().await?;
                }
                self.broker.ask(open, underway.next()).await?
            }
        };
        let Some((at, answer)) = next else {
            return Ok(());
        };
        call.answers[at] = Some(match answer {
            Ok(Confirmation::Ack(returned)) => {
                call.returned.extend(returned);
                Ok(())
            }
            Ok(Confirmation::Nack(returned)) => {
                call.returned.extend(returned);
                call.refused.push(at);
                Err(PublishError::Failed(Error::overloaded(
                    format!(
                        "rabbitmq at `{}` refused the message: its queue is full",
                        open.node
                    ),
                    RETRY_AFTER,
                )))
            }
            Ok(Confirmation::NotRequested) => {
                Err(PublishError::Failed(Error::unavailable("confirms are off")))
            }
            Err(error) => {
                let nowhere = nowhere(&error);
                let error = self.broker.failed(open, error);
                Err(if nowhere {
                    PublishError::NoExchange(error.chain())
                } else {
                    PublishError::Failed(error)
                })
            }
        });
        Ok(())
    }

    /// A channel with confirms that no other call uses.
    async fn channel(&self, open: &OpenConnection) -> Result<Channel> {
        {
            let mut idle = lock(&self.idle);
            while let Some((number, channel)) = idle.pop() {
                if number == open.number && channel.status().connected() {
                    return Ok(channel);
                }
            }
        }
        let channel = self.broker.channel(open).await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        self.broker.call(open, select).await?;
        Ok(channel)
    }
}

/// Whether a publish met an exchange that is missing.
fn nowhere(error: &lapin::Error) -> bool {
    error::is_not_found(error)
}

/// The messages of one call, and their answers.
struct Call<'a> {
    publishes: &'a [&'a Publish],
    answers: Vec<Option<PublishResult>>,
    returned: Vec<BasicReturnMessage>,
    refused: Vec<usize>,
}

impl Call<'_> {
    fn outcomes(self, failed: Option<Error>) -> Vec<PublishResult> {
        let outcomes = self.publishes.iter().zip(self.answers);
        let outcome = |(publish, answer): (&&Publish, Option<PublishResult>)| {
            if self.returned.iter().any(|message| is_of(publish, message)) {
                return Err(PublishError::Returned(format!(
                    "no queue is bound to `{}` for routing key `{}`",
                    publish.exchange, publish.routing_key
                )));
            }
            // The outcome of unanswered messages is unknown.
            answer.unwrap_or_else(|| {
                let error = failed
                    .as_ref()
                    .map_or_else(|| Error::unavailable("rabbitmq gave no outcome"), copy_of);
                Err(PublishError::Failed(error))
            })
        };
        outcomes.map(outcome).collect()
    }
}

/// A copy of the error for another message.
fn copy_of(error: &Error) -> Error {
    match error.retry_after() {
        Some(retry_after) => Error::overloaded(error.chain(), retry_after),
        None => Error::new(error.kind(), error.chain()),
    }
}

fn is_of(publish: &Publish, message: &BasicReturnMessage) -> bool {
    let delivery = &message.delivery;
    delivery.exchange.as_str() == publish.exchange
        && delivery.routing_key.as_str() == publish.routing_key
        && delivery.properties.message_id() == publish.properties.message_id()
}
