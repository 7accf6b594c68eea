//! The routes port: bindings in a set per exchange; matching and copying are one script.

use async_trait::async_trait;
use redis::Value;
use towpath_core::port::routes::{Binding, Publication, Routes};
use towpath_core::{Error, ExchangeName, QueueName, Result, ResultExt};

use super::declared::member;
use super::queue::{add_message, queue_is_full};
use super::store::Store;
use super::{reply, script};

#[async_trait]
impl Routes for Store {
    async fn bind(&self, binding: &Binding) -> Result<()> {
        if binding.pattern.len() > 255 {
            return Err(Error::invalid("a pattern must have at most 255 bytes"));
        }
        self.servers.check_any_together()?;
        self.queue(&binding.queue).await?;
        self.change("SADD", binding).await?;
        self.declared.bound(binding);
        Ok(())
    }

    async fn unbind(&self, binding: &Binding) -> Result<()> {
        self.change("SREM", binding).await?;
        self.declared.unbound(binding);
        Ok(())
    }

    async fn bindings(&self, exchange: &ExchangeName) -> Result<Vec<Binding>> {
        let key = self.keys.bindings(exchange.as_str());
        let mut members = redis::cmd("SMEMBERS");
        members.arg(&key);
        let mut found = reply::list(self.servers.query(key.as_bytes(), &members).await?)?
            .into_iter()
            .map(|member| {
                let member = reply::text(member)?;
                let (queue, pattern) = member
                    .split_once('\0')
                    .ok_or_else(|| Error::corrupt("a binding has no queue"))?;
                Ok(Binding {
                    exchange: exchange.clone(),
                    pattern: pattern.to_owned(),
                    queue: QueueName::new(queue)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        found.sort();
        Ok(found)
    }

    async fn publish(
        &self,
        exchange: &ExchangeName,
        publications: Vec<Publication>,
    ) -> Result<Vec<Result<usize>>> {
        self.servers.check_any_together()?;
        let mut call = script::PUBLISH.on([self.keys.bindings(exchange.as_str())]);
        for part in self.keys.parts() {
            call.arg(part);
        }
        let checked: Vec<Result<()>> = publications.iter().map(|one| one.message.check()).collect();
        for (publication, checked) in publications.iter().zip(&checked) {
            if checked.is_ok() {
                call.arg(&publication.routing_key);
                add_message(&mut call, &publication.message)?;
            }
        }
        let answers = self
            .servers
            .run(call)
            .await
            .context(|| format!("publish to `{exchange}`"))?;
        let mut answers = reply::list(answers)?.into_iter();
        let outcomes = publications
            .iter()
            .zip(checked)
            .map(|(publication, checked)| {
                checked?;
                match answers.next().unwrap_or_default() {
                    Value::Int(0) => Err(unroutable(exchange.as_str(), &publication.routing_key)),
                    Value::Int(count) => usize::try_from(count).map_err(|error| {
                        Error::corrupt("a count is out of range").with_source(error)
                    }),
                    full => Err(queue_is_full(&QueueName::new(reply::text(full)?)?)),
                }
            })
            .collect();
        self.wake_all();
        Ok(outcomes)
    }
}

impl Store {
    pub(super) async fn change(&self, command: &str, binding: &Binding) -> Result<()> {
        let key = self.keys.bindings(binding.exchange.as_str());
        let mut cmd = redis::cmd(command);
        cmd.arg(&key).arg(member(binding));
        self.servers
            .query(key.as_bytes(), &cmd)
            .await
            .map(drop)
            .context(|| format!("change the routes of `{}`", binding.exchange))
    }
}

pub(super) fn unroutable(exchange: &str, routing_key: &str) -> Error {
    Error::not_found(format!("no route of `{exchange}` matches `{routing_key}`"))
}
