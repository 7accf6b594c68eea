//! Publishing with confirms: a message counts once the broker has said that it has it, and that it had a queue for it.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};
use towpath_core::{Error, Result};

use super::error;
use super::link::{Link, Open};

/// Messages on their way at once, from all callers.
const WINDOW: usize = 1_024;

/// When a producer may come back that met a broker out of memory or disk.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One message and where it goes.
pub(super) struct Letter {
    /// Empty for the queue whose name is the routing key.
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) payload: Bytes,
}

/// The sending side.
pub(super) struct Publisher {
    pub(super) link: Link,
    channel: Mutex<Option<(Open, Channel)>>,
    window: Semaphore,
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            channel: Mutex::new(None),
            window: Semaphore::new(WINDOW),
        }
    }

    /// Sends all, and says of each whether the broker has it: `NotFound` when no queue was there for it.
    pub(super) async fn send(&self, letters: Vec<Letter>) -> Vec<Result<()>> {
        let count = letters.len();
        let mut outcomes = Vec::with_capacity(count);
        if let Err(error) = self.send_into(letters, &mut outcomes).await {
            // Of what has no answer it is unknown whether it arrived.
            let text = error.chain();
            outcomes.push(Err(error));
            while outcomes.len() < count {
                outcomes.push(Err(Error::unavailable(text.clone())));
            }
        }
        outcomes.truncate(count);
        outcomes
    }

    async fn send_into(&self, letters: Vec<Letter>, outcomes: &mut Vec<Result<()>>) -> Result<()> {
        let (open, channel) = self.channel().await?;
        if let Some(why) = self.link.blocked() {
            let text = format!(
                "rabbitmq at `{}` takes no messages just now: {why}",
                open.node
            );
            return Err(Error::overloaded(text, RETRY_AFTER));
        }
        let mut underway = FuturesOrdered::new();
        for letter in letters {
            while underway.len() >= WINDOW / 4 {
                self.next(&open, &mut underway, outcomes).await?;
            }
            let place = self.window.acquire().await;
            let place = place.map_err(|error| Error::unavailable("closed").with_source(error))?;
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let (exchange, key) = (letter.exchange.into(), letter.routing_key.into());
            let publish =
                channel.basic_publish(exchange, key, options, &letter.payload, letter.properties);
            let confirm = self.link.call(&open, publish).await?;
            underway.push_back(async move {
                let answer = confirm.await;
                drop(place);
                answer
            });
        }
        while !underway.is_empty() {
            self.next(&open, &mut underway, outcomes).await?;
        }
        Ok(())
    }

    async fn next(
        &self,
        open: &Open,
        underway: &mut FuturesOrdered<impl Future<Output = lapin::Result<Confirmation>>>,
        outcomes: &mut Vec<Result<()>>,
    ) -> Result<()> {
        let Some(answer) = self.link.ask(open, underway.next()).await? else {
            return Ok(());
        };
        let answer = answer.map_err(|told| {
            let error = error::of_call(&open.node, told);
            self.link.give_up(open, &error);
            error
        })?;
        outcomes.push(match answer {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) => Err(Error::not_found(format!(
                "no queue takes messages of `{}` with routing key `{}`",
                returned.delivery.exchange, returned.delivery.routing_key
            ))),
            Confirmation::Nack(_) => Err(Error::overloaded(
                format!("rabbitmq at `{}` could not keep the message", open.node),
                RETRY_AFTER,
            )),
            Confirmation::NotRequested => Err(Error::unavailable("confirms are off")),
        });
        Ok(())
    }

    /// The channel with confirms, made anew with its connection.
    async fn channel(&self) -> Result<(Open, Channel)> {
        let mut kept = self.channel.lock().await;
        if let Some((open, channel)) = &*kept
            && self.link.is_live(open.number)
            && channel.status().connected()
        {
            return Ok((open.clone(), channel.clone()));
        }
        let open = self.link.open().await?;
        let channel = self.link.channel(&open).await?;
        let select = channel.confirm_select(ConfirmSelectOptions::default());
        self.link.call(&open, select).await?;
        *kept = Some((open.clone(), channel.clone()));
        Ok((open, channel))
    }
}
