//! A hand-written queue on the broker for comparison: publish and await the confirm, consume with a prefetch, ack.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::runtime::default_runtime;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use tokio::sync::Mutex;
use towpath_core::{Error, Result};

const QUEUE: &str = "bench-bare";

/// Expiry of the unused queue.
const EXPIRES_MS: i32 = 60_000;

/// Prefetch of the consumer.
const PREFETCH: u16 = 1_000;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Two connections, as our store has: one to publish, one to consume.
pub(crate) struct Baseline {
    node: String,
    quorum: bool,
    publishing: Channel,
    consuming: Channel,
    /// Made with the queue.
    consumer: Mutex<Option<Consumer>>,
    /// Kept open.
    _connections: [Connection; 2],
}

impl Baseline {
    /// Connects to the first node of a URL of ours; of its parameters only `queue_type` counts.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer; `Invalid` for a bad URL.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let (address, parameters) = url.split_once('?').unwrap_or((url, ""));
        let uri = AMQPUri::from_str(address.split(',').next().unwrap_or(address));
        let uri = uri.map_err(|reason| Error::invalid(format!("invalid URL: {reason}")))?;
        let node = format!("{}:{}", uri.authority.host, uri.authority.port);
        let connect = || {
            let properties = ConnectionProperties::default();
            let (uri, node) = (uri.clone(), node.as_str());
            async move {
                let runtime = default_runtime().map_err(|error| failed(node, error))?;
                let dialled = Connection::connect_uri_with_config(
                    uri,
                    properties,
                    OwnedTLSConfig::default(),
                    runtime,
                );
                call(node, dialled).await
            }
        };
        let connections = [connect().await?, connect().await?];
        let publishing = call(&node, connections[0].create_channel()).await?;
        let confirms = publishing.confirm_select(ConfirmSelectOptions::default());
        call(&node, confirms).await?;
        let consuming = call(&node, connections[1].create_channel()).await?;
        let prefetch = consuming.basic_qos(PREFETCH, BasicQosOptions::default());
        call(&node, prefetch).await?;
        Ok(Self {
            quorum: !parameters.contains("queue_type=classic"),
            publishing,
            consuming,
            consumer: Mutex::default(),
            _connections: connections,
            node,
        })
    }

    /// Makes the queue, of the type that a queue of ours would have, and its consumer.
    async fn make(&self) -> Result<Consumer> {
        let mut arguments = FieldTable::default();
        let kind = if self.quorum { "quorum" } else { "classic" };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
        let options = QueueDeclareOptions::durable();
        let declare = self
            .consuming
            .queue_declare(QUEUE.into(), options, arguments);
        call(&self.node, declare).await?;
        let consume = self.consuming.basic_consume(
            QUEUE.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        call(&self.node, consume).await
    }
}

fn failed(node: &str, error: lapin::Error) -> Error {
    Error::unavailable(format!("rabbitmq at `{node}` failed a call")).with_source(error)
}

async fn call<T>(node: &str, call: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer.map_err(|error| failed(node, error)),
        Err(_) => Err(Error::unavailable(format!(
            "rabbitmq at `{node}` did not answer within {ANSWER:?}"
        ))),
    }
}

#[async_trait]
impl super::Baseline for Baseline {
    async fn publish(&self, payloads: Vec<Bytes>) -> Result<()> {
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let mut underway = Vec::with_capacity(payloads.len());
        for payload in &payloads {
            let publish = self.publishing.basic_publish(
                "".into(),
                QUEUE.into(),
                options,
                payload,
                persistent.clone(),
            );
            underway.push(call(&self.node, publish).await?);
        }
        for confirm in underway {
            if call(&self.node, confirm).await? != Confirmation::Ack(None) {
                return Err(Error::unavailable(format!(
                    "rabbitmq at `{}` did not keep a message of queue `{QUEUE}`",
                    self.node
                )));
            }
        }
        Ok(())
    }

    async fn consume(&self, max: usize, wait: Duration) -> Result<Vec<Bytes>> {
        let mut consumer = self.consumer.lock().await;
        let Some(consumer) = consumer.as_mut() else {
            return Err(Error::not_found(format!(
                "queue `{QUEUE}` is not declared yet"
            )));
        };
        let ended = || {
            let node = &self.node;
            Error::unavailable(format!("rabbitmq at `{node}` ended the consumer"))
        };
        let mut payloads = Vec::new();
        let mut last = None;
        let mut next = tokio::time::timeout(wait, consumer.next()).await.ok();
        while let Some(arrival) = next {
            let arrival = arrival.ok_or_else(ended)?;
            let arrival = arrival.map_err(|error| failed(&self.node, error))?;
            payloads.push(Bytes::from(arrival.data));
            last = Some(arrival.acker);
            next = if payloads.len() < max {
                consumer.next().now_or_never()
            } else {
                None
            };
        }
        if let Some(last) = last {
            // One ack for all: no other consumer can take any.
            let ack = last.ack(BasicAckOptions { multiple: true });
            call(&self.node, ack).await?;
        }
        Ok(payloads)
    }

    async fn clear(&self) -> Result<()> {
        let mut consumer = self.consumer.lock().await;
        // Including messages in flight to a consumer.
        let delete = self
            .consuming
            .queue_delete(QUEUE.into(), QueueDeleteOptions::default());
        call(&self.node, delete).await?;
        *consumer = Some(self.make().await?);
        Ok(())
    }

    async fn server_cpu(&self) -> Result<Duration> {
        Err(Error::unsupported(
            "RabbitMQ does not report its CPU time over AMQP",
        ))
    }
}
