//! `towpath kv`: keys and values, of the orders app where it runs.

use clap::{Args, Subcommand, value_parser};
use http::Method;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{Count, KeyView, Sum};
use crate::http::{encoded, segment};
use towpath::sink::escape;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(super) enum KvCommand {
    /// Show the value of a key
    #[command(
        after_help = "Examples:\n  towpath kv set inventory:case 100 && towpath kv get inventory:case"
    )]
    Get(KeyArgs),
    /// Set a key
    #[command(
        after_help = "Examples:\n  towpath kv set inventory:case 100\n  towpath kv set greeting hello --ttl 5m"
    )]
    Set {
        #[command(flatten)]
        named: KeyArgs,
        /// Value
        value: String,
        /// Time to live, like 30s or 5m [default: none]
        #[arg(long)]
        ttl: Option<jiff::SignedDuration>,
    },
    /// Add to a counter, 1 by default
    #[command(
        after_help = "Examples:\n  towpath kv incr inventory:case 10\n  towpath kv incr inventory:case -- -3"
    )]
    Incr {
        #[command(flatten)]
        named: KeyArgs,
        /// Amount; negative to subtract
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },
    /// Delete a key
    #[command(after_help = "Examples:\n  towpath kv del greeting")]
    Del(KeyArgs),
    /// List keys with a prefix, in order
    #[command(after_help = "Examples:\n  towpath kv keys\n  towpath kv keys inventory: --max 1000")]
    Keys {
        /// Key prefix; a final `*` is ignored
        #[arg(default_value = "")]
        prefix: String,
        /// Start after this key
        #[arg(long)]
        after: Option<String>,
        /// Maximum keys, 1 to 1000
        #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=1000))]
        max: u16,
    },
    /// Show the time to live of a key in seconds; -1 without one, -2 when absent
    #[command(after_help = "Examples:\n  towpath kv ttl inventory:case")]
    Ttl(KeyArgs),
}

/// A key.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// The key
    key: String,
}

pub(super) async fn run(global: &Global, command: KvCommand) -> Result<Exit, Failure> {
    let client = Client::new(global)?;
    let path = |named: &KeyArgs| format!("/v1/kv/{}", segment(&named.key));
    match command {
        KvCommand::Get(named) => {
            let found: KeyView = client.get(&path(&named)).await?;
            match global.format {
                Format::Json => output::json(&found)?,
                Format::Table => match found.value {
                    Some(value) => output::line(value.payload)?,
                    None => output::table(
                        &["FIELD", "VALUE"],
                        found
                            .fields
                            .into_iter()
                            .map(|(name, value)| vec![name, value]),
                    )?,
                },
            }
        }
        KvCommand::Set { named, value, ttl } => {
            let mut path = path(&named);
            if let Some(ttl) = ttl {
                let millis = u64::try_from(ttl.as_millis()).unwrap_or_default();
                if millis == 0 {
                    return Err(Failure::new(Exit::Usage, "`--ttl` must be 1ms or more"));
                }
                path = format!("{path}?ttl_millis={millis}");
            }
            let set: KeyView = client
                .call(Method::PUT, &path, &[], value.into_bytes())
                .await?;
            match global.format {
                Format::Json => output::json(&set)?,
                Format::Table if global.quiet => {}
                Format::Table => output::line("OK")?,
            }
        }
        KvCommand::Incr { named, by } => {
            let body = serde_json::json!({ "by": by });
            let sum: Sum = client.post(&format!("{}/add", path(&named)), &body).await?;
            match global.format {
                Format::Json => output::json(&sum)?,
                Format::Table => output::line(sum.value.to_string())?,
            }
        }
        KvCommand::Del(named) => {
            let count: Count = client
                .call(Method::DELETE, &path(&named), &[], Vec::new())
                .await?;
            super::queue::show_count(global, &count, "removed")?;
        }
        KvCommand::Keys { prefix, after, max } => {
            let prefix = encoded(prefix.trim_end_matches('*'));
            let after =
                after.map_or_else(String::new, |after| format!("&after={}", encoded(&after)));
            let keys: Vec<String> = client
                .get(&format!("/v1/kv?prefix={prefix}&max={max}{after}"))
                .await?;
            if global.format == Format::Json {
                output::json(&keys)?;
            } else {
                for key in keys {
                    output::line(escape(key.as_bytes()))?;
                }
            }
        }
        KvCommand::Ttl(named) => {
            let found: Option<KeyView> = client.find(&path(&named)).await?;
            // As `TTL` of Redis counts: whole seconds, rounded.
            let seconds = found.map_or(-2, |found| {
                found.ttl_millis.map_or(-1, |millis| {
                    i64::try_from((millis + 500) / 1000).unwrap_or(i64::MAX)
                })
            });
            match global.format {
                Format::Json => output::json(&serde_json::json!({ "ttl_seconds": seconds }))?,
                Format::Table => output::line(seconds.to_string())?,
            }
        }
    }
    Ok(Exit::Ok)
}
