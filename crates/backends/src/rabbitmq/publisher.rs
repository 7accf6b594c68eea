//! Publishing with confirms: a message counts once the broker has said that it has it, and that it had a queue for it.
//!
//! Each call has a channel to itself. The client hands a returned message to whichever confirm it reads next, so only
//! when all confirms of a channel are in is it certain which of its messages were returned.

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

use super::connection::{Link, Open};
use super::error;
use super::quorum::Majority;
use super::store::lock;

/// Messages of one call that wait for their confirm.
const WINDOW: usize = 256;

/// Calls at once, each on its channel.
const CHANNELS: usize = 128;

/// When a producer may come back that met a broker out of memory or disk, or a full queue.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a confirm may take before the broker is asked whether it can confirm at all.
const DOUBT: Duration = Duration::from_millis(1_500);

/// One message and where it goes.
#[derive(Clone)]
pub(super) struct Letter {
    /// Empty for the queue whose name is the routing key.
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) payload: Bytes,
}

/// Why the broker does not have a message.
pub(super) enum Lost {
    /// No queue was there for it.
    Returned(String),
    /// Its exchange is missing; of other messages of the call it is unknown whether they arrived.
    NoExchange(String),
    /// The broker refused it, or did not answer.
    Failed(Error),
}

impl Lost {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Returned(text) | Self::NoExchange(text) => Error::not_found(text),
            Self::Failed(error) => error,
        }
    }
}

/// What became of one message.
pub(super) type Sent = std::result::Result<(), Lost>;

/// The sending side.
pub(super) struct Publisher {
    pub(super) link: Link,
    majority: Arc<Majority>,
    /// Channels with confirms on which everything is confirmed, with the numbers of their connections.
    idle: Mutex<Vec<(u64, Channel)>>,
    turns: Semaphore,
}

impl Publisher {
    pub(super) fn new(link: Link, majority: Arc<Majority>) -> Self {
        Self {
            link,
            majority,
            idle: Mutex::default(),
            turns: Semaphore::new(CHANNELS),
        }
    }

    /// Sends all, and says of each whether the broker has it.
    pub(super) async fn send(&self, letters: &[Letter]) -> Vec<Sent> {
        if letters.is_empty() {
            return Vec::new();
        }
        let began = Instant::now();
        let (mut outcomes, refused) = self.send_once(letters).await;
        if refused.is_empty() {
            return outcomes;
        }
        // RabbitMQ 3.10 goes on refusing on a channel that met a queue without a leader; another one waits for it.
        let again: Vec<Letter> = refused.iter().map(|at| letters[*at].clone()).collect();
        let (sent, still) = self.send_once(&again).await;
        for (at, sent) in refused.iter().zip(sent) {
            outcomes[*at] = sent;
        }
        // A refusal has no reason: it is a queue without its majority, or one that is full.
        if !still.is_empty()
            && let Err(error) = self.majority.check_since(began).await
        {
            for at in still {
                outcomes[refused[at]] = Err(Lost::Failed(Error::unavailable(error.chain())));
            }
        }
        outcomes
    }

    /// What became of each, and which were refused.
    async fn send_once(&self, letters: &[Letter]) -> (Vec<Sent>, Vec<usize>) {
        let mut call = Call {
            letters,
            answers: letters.iter().map(|_| None).collect(),
            returned: Vec::new(),
            refused: Vec::new(),
        };
        let failed = self.send_on_a_channel(&mut call).await.err();
        let refused = std::mem::take(&mut call.refused);
        (call.outcomes(failed), refused)
    }

    async fn send_on_a_channel(&self, call: &mut Call<'_>) -> Result<()> {
        let _turn = self.turns.acquire().await;
        let open = self.link.open().await?;
        if let Some(why) = self.link.blocked() {
            let text = format!(
                "rabbitmq at `{}` takes no messages just now: {why}",
                open.node
            );
            return Err(Error::overloaded(text, RETRY_AFTER));
        }
        let channel = self.channel(&open).await?;
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let mut underway = FuturesUnordered::new();
        let mut ended = None;
        for (at, letter) in call.letters.iter().enumerate() {
            while underway.len() >= WINDOW {
                self.next(&open, call, &mut underway).await?;
            }
            let (exchange, key) = (
                letter.exchange.as_str().into(),
                letter.routing_key.as_str().into(),
            );
            let properties = letter.properties.clone();
            let publish =
                channel.basic_publish(exchange, key, options, &letter.payload, properties);
            match self.link.ask(&open, publish).await? {
                Ok(confirm) => underway.push(async move { (at, confirm.await) }),
                // The channel has ended: those before it are answered with the reason.
                Err(told) => {
                    ended = Some(told);
                    break;
                }
            }
        }
        while !underway.is_empty() {
            self.next(&open, call, &mut underway).await?;
        }
        if let Some(told) = ended {
            let nowhere = nowhere(&told);
            let error = self.link.failed(&open, told);
            let text = error.chain();
            for answer in call.answers.iter_mut().filter(|answer| answer.is_none()) {
                *answer = Some(Err(if nowhere {
                    Lost::NoExchange(text.clone())
                } else {
                    Lost::Failed(Error::unavailable(text.clone()))
                }));
            }
        } else if channel.status().connected() && call.refused.is_empty() {
            lock(&self.idle).push((open.number, channel));
        }
        Ok(())
    }

    /// Reads one confirm.
    async fn next(
        &self,
        open: &Open,
        call: &mut Call<'_>,
        underway: &mut FuturesUnordered<impl Future<Output = (usize, lapin::Result<Confirmation>)>>,
    ) -> Result<()> {
        let next = match tokio::time::timeout(DOUBT, underway.next()).await {
            Ok(next) => next,
            Err(_) => {
                if self.link.blocked().is_none() {
                    self.majority.check().await?;
                }
                self.link.ask(open, underway.next()).await?
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
                Err(Lost::Failed(Error::overloaded(
                    format!(
                        "rabbitmq at `{}` refused the message: its queue is full",
                        open.node
                    ),
                    RETRY_AFTER,
                )))
            }
            Ok(Confirmation::NotRequested) => {
                Err(Lost::Failed(Error::unavailable("confirms are off")))
            }
            Err(told) => {
                let nowhere = nowhere(&told);
                let error = self.link.failed(open, told);
                Err(if nowhere {
                    Lost::NoExchange(error.chain())
                } else {
                    Lost::Failed(error)
                })
            }
        });
        Ok(())
    }

    /// A channel with confirms that no other call uses.
    async fn channel(&self, open: &Open) -> Result<Channel> {
        {
            let mut idle = lock(&self.idle);
            while let Some((number, channel)) = idle.pop() {
                if number == open.number && channel.status().connected() {
                    return Ok(channel);
                }
            }
        }
        let channel = self.link.channel(open).await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        self.link.call(open, select).await?;
        Ok(channel)
    }
}

/// Whether a publish met an exchange that is missing.
fn nowhere(told: &lapin::Error) -> bool {
    error::is_not_found(told)
}

/// The messages of one call, and what is known of each.
struct Call<'a> {
    letters: &'a [Letter],
    answers: Vec<Option<Sent>>,
    returned: Vec<BasicReturnMessage>,
    refused: Vec<usize>,
}

impl Call<'_> {
    fn outcomes(self, failed: Option<Error>) -> Vec<Sent> {
        let text = failed.as_ref().map(Error::chain).unwrap_or_default();
        let mut failed = failed;
        let outcomes = self.letters.iter().zip(self.answers);
        let outcome = |(letter, answer): (&Letter, Option<Sent>)| {
            if self.returned.iter().any(|message| is_of(letter, message)) {
                return Err(Lost::Returned(format!(
                    "no queue takes messages of `{}` with routing key `{}`",
                    letter.exchange, letter.routing_key
                )));
            }
            // Of what has no answer it is unknown whether it arrived.
            answer.unwrap_or_else(|| {
                let unknown = || Error::unavailable(text.clone());
                Err(Lost::Failed(failed.take().unwrap_or_else(unknown)))
            })
        };
        outcomes.map(outcome).collect()
    }
}

fn is_of(letter: &Letter, message: &BasicReturnMessage) -> bool {
    let delivery = &message.delivery;
    delivery.exchange.as_str() == letter.exchange
        && delivery.routing_key.as_str() == letter.routing_key
        && delivery.properties.message_id() == letter.properties.message_id()
}
