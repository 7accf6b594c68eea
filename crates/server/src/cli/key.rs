//! `towpath key`: the API keys of this machine's key file.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use towpath_core::{Clock, Error, SystemClock, Timestamp};

use super::{Exit, Failure, Format, Global, output};
use crate::auth::{Key, Scope, change, read};

/// Default grace period of a rotated secret.
const GRACE: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create a key and print it, once
    #[command(
        after_help = "Scopes: ingest:write orders:read orders:write inventory:read inventory:write users:read users:write limits:read limits:consume limits:reset fleet:read fleet:publish fleet:enroll worker:read worker:configure tasks:read tasks:write metrics:read queue:NAME:read queue:NAME:write queue:NAME:lease queue:NAME:admin admin\n\nExamples:\n  towpath key new shop --scope orders:write\n  towpath key new dashboard --scope 'queue:*:read' --scope metrics:read --expires 90d\n  towpath key new billing --scope orders:write --certificate billing.internal"
    )]
    New(NewKey),
    /// List keys
    #[command(after_help = "Examples:\n  towpath key ls\n  towpath key ls --output json")]
    Ls,
    /// Give a key a new secret and print it; the old one stays valid for a while
    #[command(
        after_help = "Examples:\n  towpath key rotate shop\n  towpath key rotate shop --grace 0s"
    )]
    Rotate {
        /// Id of the key, or its name when no other key has it
        #[arg(value_name = "KEY")]
        id: String,
        /// Grace period of the old secret
        #[arg(long, default_value_t = GRACE)]
        grace: jiff::SignedDuration,
    },
    /// Delete a key
    #[command(after_help = "Examples:\n  towpath key revoke shop")]
    Revoke {
        /// Id of the key, or its name when no other key has it
        #[arg(value_name = "KEY")]
        id: String,
    },
}

/// A key to create.
#[derive(Debug, Args)]
pub(super) struct NewKey {
    /// Purpose of the key
    name: String,
    /// Scope of the key; repeat for several
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// Name in a client certificate that takes the place of a secret: its common name, a DNS or a URI name
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    certificate: Option<String>,
    /// Validity, like 90d; without it until it is revoked
    #[arg(long, value_name = "DURATION")]
    expires: Option<jiff::Span>,
}

/// A key as it is printed.
#[derive(Serialize)]
struct KeyView {
    id: String,
    name: String,
    scopes: Vec<Scope>,
    created: String,
    expires: Option<String>,
    /// The name in the client certificate, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    /// The whole key, when it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl KeyView {
    fn new(key: &Key, text: Option<String>) -> Self {
        Self {
            id: key.id.clone(),
            name: key.name.clone(),
            scopes: key.scopes.clone(),
            created: key.created.to_string(),
            expires: key.expires.map(|expires| expires.to_string()),
            certificate: key.certificate.clone(),
            key: text,
        }
    }
}

pub(super) fn run(global: &Global, command: KeyCommand) -> Result<Exit, Failure> {
    let loaded = global.load()?;
    let path = loaded.config.key_file.as_path();
    let now = SystemClock::new().now();
    let leave = |action: &str, key: &Key, parameters| {
        Global::leave(&loaded.config, action, key.id.clone(), parameters);
    };
    match command {
        KeyCommand::New(new) => {
            let expires = new.expires.map(|span| after(now, span)).transpose()?;
            let (key, text) = match new.certificate {
                None => {
                    let (key, text) = Key::make(new.name, new.scopes, now, expires)?;
                    (key, Some(text))
                }
                Some(certificate) => {
                    let key = Key::of_certificate(certificate, new.name, new.scopes, now, expires)?;
                    (key, None)
                }
            };
            change(path, |keys| {
                let is_same = |other: &&Key| {
                    key.certificate.is_some() && other.certificate == key.certificate
                };
                if let Some(other) = keys.iter().find(is_same) {
                    return Err(Error::invalid(format!(
                        "the key `{}` has this certificate; revoke it first",
                        other.id
                    )));
                }
                keys.push(key.clone());
                Ok(())
            })?;
            let scopes: Vec<_> = key.scopes.iter().map(Scope::to_string).collect();
            leave("key new", &key, Some(scopes.join(" ")));
            shown(global, &KeyView::new(&key, text))
        }
        KeyCommand::Ls => list(global, path, now),
        KeyCommand::Rotate { id, grace } => {
            let grace = Duration::try_from(grace).map_err(|_| {
                Error::invalid(format!("invalid `--grace {grace}`; expected e.g. `24h`"))
            })?;
            let (key, text) = change(path, |keys| {
                let key = find(keys, &id)?;
                let text = key.rotate(now.after(grace))?;
                Ok((key.clone(), text))
            })?;
            leave("key rotate", &key, Some(format!("grace {grace:?}")));
            shown(global, &KeyView::new(&key, Some(text)))
        }
        KeyCommand::Revoke { id } => {
            let key = change(path, |keys| {
                let key = find(keys, &id)?.clone();
                keys.retain(|other| other.id != key.id);
                Ok(key)
            })?;
            leave("key revoke", &key, None);
            match global.format {
                Format::Json => output::json(&KeyView::new(&key, None))?,
                Format::Table => output::line(format!(
                    "revoked `{}` ({}); running processes refuse it within two seconds",
                    key.id, key.name
                ))?,
            }
            Ok(Exit::Ok)
        }
    }
}

/// The key with this id, or the only one with this name.
fn find<'a>(keys: &'a mut [Key], text: &str) -> towpath_core::Result<&'a mut Key> {
    let mut found = keys
        .iter_mut()
        .filter(|key| key.id == text || key.name == text);
    let key = found.next().ok_or_else(|| {
        Error::not_found(format!(
            "unknown key `{text}`; `towpath key ls` lists the keys"
        ))
    })?;
    match found.next() {
        None => Ok(key),
        Some(_) => Err(Error::invalid(format!(
            "several keys have the name `{text}`; pass the id, as `towpath key ls` lists it"
        ))),
    }
}

fn list(global: &Global, path: &Path, now: Timestamp) -> Result<Exit, Failure> {
    let keys = read(path)?;
    match global.format {
        Format::Json => {
            let keys: Vec<_> = keys.iter().map(|key| KeyView::new(key, None)).collect();
            output::json(&keys)?;
        }
        Format::Table => output::table(
            &["ID", "NAME", "SCOPES", "CREATED", "EXPIRES"],
            keys.into_iter().map(|key| {
                let expires = match key.expires {
                    None => "never".to_owned(),
                    Some(_) if key.is_expired(now) => "expired".to_owned(),
                    Some(expires) => expires.to_string(),
                };
                let scopes: Vec<_> = key.scopes.iter().map(Scope::to_string).collect();
                vec![
                    key.id,
                    key.name,
                    scopes.join(" "),
                    key.created.to_string(),
                    expires,
                ]
            }),
        )?,
    }
    Ok(Exit::Ok)
}

/// A new secret, which cannot be shown again.
fn shown(global: &Global, key: &KeyView) -> Result<Exit, Failure> {
    match (global.format, &key.key) {
        (Format::Json, _) => output::json(key)?,
        (Format::Table, None) => output::line(format!(
            "created `{}` ({}); running processes accept its certificate within two seconds",
            key.id, key.name
        ))?,
        (Format::Table, Some(text)) => {
            output::note(
                "The key is not stored and cannot be shown again; running processes accept it within two seconds.",
            );
            output::line(text)?;
        }
    }
    Ok(Exit::Ok)
}

/// The moment this long after `now`, in days of 24 hours.
fn after(now: Timestamp, span: jiff::Span) -> towpath_core::Result<Timestamp> {
    let wrong = || Error::invalid(format!("invalid `--expires {span}`; expected e.g. `90d`"));
    let duration = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(|_| wrong())?;
    let duration = Duration::try_from(duration).map_err(|_| wrong())?;
    Ok(now.after(duration))
}
