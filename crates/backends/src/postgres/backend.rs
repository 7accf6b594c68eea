//! PostgreSQL's row of the table of backends.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::backend::{Backend, Capability, Descriptor, Health, Lifecycle};
use towpath_core::{Error, Result};

use super::config::Config;
use super::store::Store;

/// The descriptor of this family.
pub const BACKEND: Descriptor = Descriptor {
    name: "postgres",
    schemes: &["postgres", "postgresql"],
    capabilities: &[Capability::Kv, Capability::RateLimit],
    parameters: &[
        (
            "sslmode",
            "disable",
            "TLS: disable, or verify-full, which checks the certificate and the host name",
        ),
        (
            "sslrootcert",
            "",
            "file with certificate authorities trusted besides those of the machine",
        ),
        (
            "target_session_attrs",
            "",
            "which server of several hosts: read-write (the default with several hosts) or any",
        ),
        (
            "application_name",
            "towpath",
            "name of the sessions in `pg_stat_activity`",
        ),
    ],
    check: |url| Config::parse(url).map(drop),
    open: |url, _clock| {
        Box::pin(async move {
            let store = Store::open(&Config::parse(&url)?).await?;
            Ok(Backend {
                url: towpath_core::address::shown(&url),
                descriptor: &BACKEND,
                lifecycle: Arc::new(Handle(Arc::clone(&store))),
                queue: None,
                routes: None,
                stream: None,
                kv: Some(Arc::clone(&store) as _),
                rate_limit: Some(store),
                effects: None,
                source_offsets: None,
            })
        })
    },
};

struct Handle(Arc<Store>);

#[async_trait]
impl Lifecycle for Handle {
    async fn health(&self) -> Result<Health> {
        self.0.health().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close();
        Ok(())
    }
}

impl Store {
    /// Checks that the server accepts changes and that the tables exist; names settings that lose changes.
    async fn health(&self) -> Result<Health> {
        self.check().await?;
        let settings = "SELECT current_setting('server_version'), current_setting('fsync'),
            current_setting('synchronous_commit'), current_setting('full_page_writes')";
        let rows = self.ask(settings, &[]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::corrupt("the settings of the server are missing"))?;
        let setting = |column: usize| -> &str { row.get(column) };
        let mut health = Health::default();
        let server = format!("PostgreSQL {} at {}", setting(0), self.places());
        health.facts.push(("server".to_owned(), server));
        let durability = match (setting(1), setting(2)) {
            ("off", _) => "none: a power cut may damage the database",
            (_, "off") => "a crash of the server loses up to about a second",
            (_, "remote_apply" | "on") => "fsync before acknowledgement",
            _ => "fsync before acknowledgement, on this server only",
        };
        health
            .facts
            .push(("durability".to_owned(), durability.to_owned()));
        for (column, name, effect) in [
            (1, "fsync", "a power cut may damage the database"),
            (
                2,
                "synchronous_commit",
                "a crash of the server loses acknowledged changes",
            ),
            (3, "full_page_writes", "a power cut may damage the database"),
        ] {
            if setting(column) == "off" {
                health
                    .warnings
                    .push(format!("`{name}` is off: {effect}; set it to on"));
            }
        }
        Ok(health)
    }
}
