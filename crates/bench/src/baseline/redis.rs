//! A hand-written queue on a list: `LPUSH`, `BLMOVE` into a list of leased payloads, `LREM`.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, Value};
use towpath_core::{Error, Result};

const LIST: &str = "bench-bare";
const LEASED: &str = "bench-bare-leased";

/// Two connections, as our store has: one shared, and one for blocking commands.
pub(crate) struct Baseline {
    server: String,
    shared: MultiplexedConnection,
    blocking: MultiplexedConnection,
}

impl Baseline {
    /// Connects to the server at a URL of the client crate.
    ///
    /// # Errors
    /// `Unavailable` when the server does not answer.
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        // The client does not know our parameters.
        let url = url.split('?').next().unwrap_or(url);
        let client = Client::open(url).map_err(|failure| failed("the server", failure))?;
        let server = client.get_connection_info().addr().to_string();
        let failed = |failure| failed(&server, failure);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(Duration::from_secs(30)));
        let connect = || client.get_multiplexed_async_connection_with_config(&config);
        let (shared, blocking) = (
            connect().await.map_err(failed)?,
            connect().await.map_err(failed)?,
        );
        Ok(Self {
            server,
            shared,
            blocking,
        })
    }

    async fn one(&self, connection: &MultiplexedConnection, cmd: &Cmd) -> Result<Value> {
        let answer = cmd.query_async(&mut connection.clone()).await;
        answer.map_err(|failure| failed(&self.server, failure))
    }

    async fn many(&self, commands: &Pipeline) -> Result<Vec<Value>> {
        let answer = commands.query_async(&mut self.shared.clone()).await;
        answer.map_err(|failure| failed(&self.server, failure))
    }

    /// Takes the payloads that are ready, at most `max`.
    async fn take(&self, max: usize) -> Result<Vec<Bytes>> {
        let mut take = Pipeline::with_capacity(max);
        for _ in 0..max {
            let mut one = redis::cmd("LMOVE");
            one.arg(LIST).arg(LEASED).arg("RIGHT").arg("LEFT");
            take.add_command(one);
        }
        let mut payloads = Vec::with_capacity(max);
        for value in self.many(&take).await? {
            payloads.extend(payload(value)?);
        }
        Ok(payloads)
    }
}

fn failed(server: &str, failure: RedisError) -> Error {
    Error::unavailable(format!("redis at `{server}` failed a command")).with_source(failure)
}

fn payload(value: Value) -> Result<Option<Bytes>> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(Bytes::from(bytes))),
        other => Err(Error::corrupt(format!("not a payload: {other:?}"))),
    }
}

#[async_trait]
impl super::Baseline for Baseline {
    async fn publish(&self, payloads: Vec<Bytes>) -> Result<()> {
        let mut push = redis::cmd("LPUSH");
        push.arg(LIST);
        for payload in &payloads {
            push.arg(&payload[..]);
        }
        self.one(&self.shared, &push).await.map(drop)
    }

    async fn consume(&self, max: usize, wait: Duration) -> Result<Vec<Bytes>> {
        let mut payloads = if max > 1 {
            self.take(max).await?
        } else {
            Vec::new()
        };
        if payloads.is_empty() {
            let mut take = redis::cmd("BLMOVE");
            take.arg(LIST).arg(LEASED).arg("RIGHT").arg("LEFT");
            take.arg(wait.as_secs_f64());
            payloads.extend(payload(self.one(&self.blocking, &take).await?)?);
        }
        let remove = |payload: &Bytes| {
            let mut remove = redis::cmd("LREM");
            // The oldest leased ones are at the tail.
            remove.arg(LEASED).arg(-1).arg(&payload[..]);
            remove
        };
        match payloads.as_slice() {
            [] => {}
            [one] => drop(self.one(&self.shared, &remove(one)).await?),
            many => {
                let mut done = Pipeline::with_capacity(many.len());
                for payload in many {
                    done.add_command(remove(payload));
                }
                self.many(&done).await?;
            }
        }
        Ok(payloads)
    }

    async fn clear(&self) -> Result<()> {
        let mut delete = redis::cmd("DEL");
        delete.arg(LIST).arg(LEASED);
        self.one(&self.shared, &delete).await.map(drop)
    }

    async fn server_cpu(&self) -> Result<Duration> {
        let mut info = redis::cmd("INFO");
        info.arg("cpu");
        let info: String = info
            .query_async(&mut self.shared.clone())
            .await
            .map_err(|failure| failed(&self.server, failure))?;
        let seconds = |name| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = lines.find(|(key, _)| *key == name)?;
            value.trim().parse::<f64>().ok()
        };
        seconds("used_cpu_user")
            .zip(seconds("used_cpu_sys"))
            .and_then(|(user, system)| Duration::try_from_secs_f64(user + system).ok())
            .ok_or_else(|| Error::unsupported("the server does not report its CPU time"))
    }
}
