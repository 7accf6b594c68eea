//! Restores declarations after the server lost them: an empty server replaced
//! the old one, `FLUSHALL`, deleted keys.
//!
//! Each round of maintenance compares the server's declarations with those of this process, so that a queue's settings, its
//! listing and the routes are back within two seconds without a call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, Value};
use towpath_core::port::queue::Settings;
use towpath_core::port::routes::Binding;
use towpath_core::{ExchangeName, QueueName, Result, retry};

use super::keys::ResourceKeys;
use super::notify::Kind;
use super::reply;
use super::store::{Store, lock, millis};

/// Settings by queue, and routes.
#[derive(Default)]
pub(super) struct Declared {
    queues: Mutex<BTreeMap<QueueName, Settings>>,
    bindings: Mutex<BTreeSet<Binding>>,
    /// Set from when a loss was logged until everything was found again.
    logged: AtomicBool,
}

impl Declared {
    pub(super) fn queue(&self, queue: &QueueName, settings: &Settings) {
        lock(&self.queues).insert(queue.clone(), settings.clone());
    }

    pub(super) fn bound(&self, binding: &Binding) {
        lock(&self.bindings).insert(binding.clone());
    }

    pub(super) fn unbound(&self, binding: &Binding) {
        lock(&self.bindings).remove(binding);
    }

    fn by_exchange(&self) -> BTreeMap<ExchangeName, Vec<Binding>> {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for binding in &*lock(&self.bindings) {
            let of_exchange = all.entry(binding.exchange.clone()).or_default();
            of_exchange.push(binding.clone());
        }
        all
    }
}

/// Declarations of this process that the server lacks.
#[derive(Default)]
struct Missing {
    /// Names that are not listed.
    names: Vec<(Kind, String)>,
    /// Queues without their `made` mark or their settings.
    queues: Vec<String>,
    bindings: Vec<Binding>,
}

impl Missing {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.queues.is_empty() && self.bindings.is_empty()
    }
}

impl Store {
    /// Declares lost declarations again.
    pub(super) async fn declare_lost(&self) -> Result<()> {
        let missing = self.missing().await?;
        if missing.is_empty() {
            self.declared.logged.store(false, Ordering::Release);
            return Ok(());
        }
        if !self.declared.logged.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                server = self.config.shown,
                names = missing.names.len(),
                queues = missing.queues.len(),
                routes = missing.bindings.len(),
                "backend lost its data; declaring again"
            );
        }
        for (kind, name) in &missing.names {
            self.list_name(*kind, name).await?;
        }
        for name in &missing.queues {
            let keys = self.keys.named(name)?;
            self.mark_made(&keys).await?;
            let settings = lock(&self.declared.queues).get(name.as_str()).cloned();
            if let Some(settings) = settings {
                self.write_settings(&keys, &settings).await?;
            }
        }
        for binding in &missing.bindings {
            self.change("SADD", binding).await?;
        }
        self.wake_all();
        Ok(())
    }

    async fn missing(&self) -> Result<Missing> {
        let mut missing = Missing::default();
        for kind in [Kind::Queue, Kind::Stream] {
            let names = self.used_names(kind);
            let key = self.keys.names(kind);
            let there = self.are_members(&key, &names).await?;
            let absent = names.into_iter().zip(there).filter(|(_, there)| !there);
            missing.names.extend(absent.map(|(name, _)| (kind, name)));
        }
        for name in self.made_names() {
            let keys = self.keys.named(&name)?;
            let mut fields = redis::cmd("HMGET");
            fields.arg(keys.queue()).arg("made").arg("attempts");
            let answer = self.servers.query(keys.list.as_bytes(), &fields).await?;
            let [made, attempts] = reply::tuple(answer)?;
            let declared = lock(&self.declared.queues).contains_key(name.as_str());
            if made == Value::Nil || (declared && attempts == Value::Nil) {
                missing.queues.push(name);
            }
        }
        for (exchange, bindings) in self.declared.by_exchange() {
            let key = self.keys.bindings(exchange.as_str());
            let members: Vec<String> = bindings.iter().map(member).collect();
            let there = self.are_members(&key, &members).await?;
            let absent = bindings.into_iter().zip(there).filter(|(_, there)| !there);
            missing.bindings.extend(absent.map(|(binding, _)| binding));
        }
        Ok(missing)
    }

    /// Whether the set has each of these.
    async fn are_members(&self, key: &str, members: &[String]) -> Result<Vec<bool>> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let mut ask = redis::cmd("SMISMEMBER");
        ask.arg(key).arg(members);
        reply::list(self.servers.query(key.as_bytes(), &ask).await?)?
            .into_iter()
            .map(|answer| Ok(reply::number(answer)? == 1))
            .collect()
    }

    pub(super) async fn list_name(&self, kind: Kind, name: &str) -> Result<()> {
        let names = self.keys.names(kind);
        let mut listed = redis::cmd("SADD");
        listed.arg(&names).arg(name);
        self.servers.query(names.as_bytes(), &listed).await?;
        Ok(())
    }

    pub(super) async fn mark_made(&self, keys: &ResourceKeys) -> Result<()> {
        let mut made = redis::cmd("HSETNX");
        made.arg(keys.queue()).arg("made").arg(1);
        self.servers.query(keys.list.as_bytes(), &made).await?;
        Ok(())
    }

    pub(super) async fn write_settings(
        &self,
        keys: &ResourceKeys,
        settings: &Settings,
    ) -> Result<()> {
        let set = settings_of(keys, settings);
        self.servers.query(keys.list.as_bytes(), &set).await?;
        Ok(())
    }
}

impl Store {
    /// The settings of a queue, as a process declared them; `None` when none did.
    pub(super) async fn read_settings(&self, keys: &ResourceKeys) -> Result<Option<Settings>> {
        let mut fields = redis::cmd("HMGET");
        fields
            .arg(keys.queue())
            .arg(&["attempts", "first_ms", "max_ms", "dedup_ms", "max_depth"]);
        let answer = self.servers.query(keys.list.as_bytes(), &fields).await?;
        let [attempts, first, max, dedup, depth] = reply::tuple(answer)?;
        if attempts == Value::Nil {
            return Ok(None);
        }
        let time = |value| reply::number(value).map(Duration::from_millis);
        Ok(Some(Settings {
            retry: retry::Policy {
                attempts: u32::try_from(reply::number(attempts)?).unwrap_or(u32::MAX),
                first: time(first)?,
                max: time(max)?,
            },
            dedup_window: time(dedup)?,
            // Empty for none.
            max_depth: reply::number(depth).ok(),
        }))
    }
}

fn settings_of(keys: &ResourceKeys, settings: &Settings) -> Cmd {
    let max_depth = settings.max_depth.map(|depth| depth.to_string());
    let mut set = redis::cmd("HSET");
    set.arg(keys.queue())
        .arg("attempts")
        .arg(settings.retry.attempts)
        .arg("first_ms")
        .arg(millis(settings.retry.first))
        .arg("max_ms")
        .arg(millis(settings.retry.max))
        .arg("dedup_ms")
        .arg(millis(settings.dedup_window))
        .arg("max_depth")
        .arg(max_depth.unwrap_or_default());
    set
}

/// How a binding is kept in the set of its exchange. A queue's name has no control characters, so the first zero byte
/// ends it.
pub(super) fn member(binding: &Binding) -> String {
    format!("{}\0{}", binding.queue, binding.pattern)
}
