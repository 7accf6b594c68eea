//! `towpath doctor`: checks the environment of a process, and names the next step for each finding.
//!
//! A running process examines itself; the configuration of this shell is examined where none runs.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use towpath_core::{ErrorKind, QueueName, units};

use super::client::Client;
use super::output::Color;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::DoctorReport;
use crate::config::{Config, load};
use crate::doctor::{Check, CheckStatus, Doctor};
use crate::wiring;

/// Options of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "The running process examines itself; the first line says which one. Where none runs, the configuration of this shell is examined.\n\nExamples:\n  towpath doctor"
)]
pub(super) struct DoctorArgs {}

/// Timeout of a database's answer.
const LOOK: Duration = Duration::from_secs(5);

pub(super) async fn run(global: &Global, _: DoctorArgs) -> Result<Exit, Failure> {
    let checks = match load(&global.sources()?) {
        Ok(loaded) => {
            let doctor = Doctor::new(&loaded.config, loaded.warnings);
            let mut checks = vec![doctor.configuration()];
            examine(global, &loaded.config, &doctor, &mut checks).await?;
            checks
        }
        Err(problems) => {
            let text = problems.to_string();
            vec![Check::new("configuration", CheckStatus::Fail, text)]
        }
    };
    if global.format == Format::Json {
        output::json(&checks)?;
    } else {
        for one in &checks {
            if global.quiet && one.found == CheckStatus::Ok {
                continue;
            }
            let (color, mark) = match one.found {
                CheckStatus::Ok => (Color::Green, "ok  "),
                CheckStatus::Warn => (Color::Yellow, "warn"),
                CheckStatus::Fail => (Color::Red, "FAIL"),
            };
            let mark = output::paint(&io::stdout(), color, mark);
            let text = format!("{}: {}", one.check, one.detail);
            output::wrapped(&format!("{mark}  "), "ok    ".len(), &text)?;
        }
    }
    Ok(if checks.iter().any(|one| one.found == CheckStatus::Fail) {
        Exit::Problems
    } else {
        Exit::Ok
    })
}

/// The answer of the running process; without one, the findings of a start with this configuration.
async fn examine(
    global: &Global,
    config: &Config,
    doctor: &Doctor,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let base = client.base().to_owned();
    let examined = async {
        client
            .check()
            .await?
            .post::<DoctorReport>("/v1/doctor", &())
            .await
    };
    match examined.await {
        Ok(examined) => {
            let DoctorReport {
                version, pid, data, ..
            } = examined;
            let roles = super::processes::in_words(&examined.roles);
            if let Some(mine) = checks.first_mut() {
                mine.detail.push_str(" (of this shell)");
            }
            let text = format!(
                "Towpath {version} at {base}, pid {pid}, {roles}, data in `{data}`; all that follows is its answer"
            );
            checks.push(Check::new("process", CheckStatus::Ok, text));
            checks.extend(examined.checks);
        }
        Err(Failure::Said(Exit::Unreachable, _)) => {
            let text = format!(
                "none answers at {base}; start one with `towpath up`. All that follows is about the configuration of this shell"
            );
            checks.push(Check::new("process", CheckStatus::Warn, text));
            checks.push(folder(config));
            checks.push(doctor.disk());
            checks.extend(store(config));
            checks.push(port("server.listen", &config.listen));
            checks.push(port("server.admin", &config.admin));
            look_at_backends(config, doctor, checks).await;
            checks.extend(doctor.leftovers().await);
            checks.push(doctor.clock());
        }
        // A process that hangs, a wrong token, or a server of another program.
        Err(Failure::Unanswered(text) | Failure::Said(_, text)) => {
            checks.push(Check::new("process", CheckStatus::Fail, text))
        }
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Whether a start would find every file of the store; absent where there is none.
fn store(config: &Config) -> Option<Check> {
    let shown = config.data_dir.display();
    let found = match wiring::verify_store(&config.data_dir, wiring::Depth::Start) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            return Some(Check::new("store", CheckStatus::Fail, error.chain()));
        }
    };
    let (mark, detail) = if found.faults.is_empty() {
        let segments = units::counted(found.segments as u64, "segment");
        let messages = units::counted(found.messages, "message");
        let text = format!("{segments} of the log present, for {messages}");
        (CheckStatus::Ok, text)
    } else {
        let faults = found.faults.join("; ");
        let text =
            format!("{faults}; restore a backup, and `towpath verify {shown}` reads everything");
        (CheckStatus::Fail, text)
    };
    Some(Check::new("store", mark, detail))
}

/// Every backend and database that the configuration names, once. Files of embedded stores are not opened: a process may
/// have them.
async fn look_at_backends(config: &Config, doctor: &Doctor, checks: &mut Vec<Check>) {
    let backends = [
        ("backends.ingest", &config.ingest_backend),
        ("backends.orders", &config.orders.broker),
        ("backends.orders_kv", &config.orders.kv),
        ("backends.lines", &config.lines.backend),
        ("backends.limits", &config.limits_backend),
        ("backends.relay", &config.accounts.broker),
        ("backends.fleet", &config.fleet.backend),
    ];
    let mut seen = BTreeSet::new();
    for (key, url) in backends {
        if !seen.insert(url.expose()) {
            continue;
        }
        if url.expose().starts_with("embedded:") {
            checks.push(doctor.durability());
            continue;
        }
        // Health speaks of queues that were asked for.
        let queue = (key == "backends.ingest").then_some(config.queue.as_str());
        look_at_backend(key, url.expose(), queue, checks).await;
    }
    for (key, url) in [
        ("accounts.database", &config.accounts.database),
        ("fleet.controller.database", &config.fleet.database),
    ] {
        if url.expose().starts_with("sqlite:") || !seen.insert(url.expose()) {
            continue;
        }
        let checked = async {
            let database = wiring::open_database(url.expose()).await?;
            database.outbox.check().await.map(|()| database.url)
        };
        let late = || {
            let text = format!("no answer within {LOOK:?}");
            Err(towpath_core::Error::unavailable(text))
        };
        let (found, detail) = match tokio::time::timeout(LOOK, checked).await {
            Ok(Ok(url)) => (CheckStatus::Ok, format!("{key}: {url} answers")),
            other => {
                let error = other.unwrap_or_else(|_| late()).err();
                let text = error.map_or_else(String::new, |error| error.chain());
                (CheckStatus::Fail, format!("{key}: {text}"))
            }
        };
        checks.push(Check::new("database", found, detail));
    }
}

async fn look_at_backend(key: &str, url: &str, queue: Option<&str>, checks: &mut Vec<Check>) {
    let looked = async {
        let backend = wiring::open(url).await?;
        if let (Some(port), Some(name)) = (&backend.queue, queue) {
            // One that does not exist yet is made as it should be.
            drop(port.stats(&QueueName::new(name)?).await);
        }
        let health = backend.lifecycle.health().await;
        backend.lifecycle.close().await?;
        health.map(|health| (backend.url, health))
    };
    match looked.await {
        Err(error) => {
            let text = format!("{key}: {}", error.chain());
            checks.push(Check::new("backend", CheckStatus::Fail, text));
        }
        Ok((url, health)) => {
            let facts = health.facts.iter();
            let facts: Vec<String> = facts
                .map(|(name, fact)| format!("{name}: {fact}"))
                .collect();
            let url = url.split('?').next().unwrap_or_default();
            let text = format!("{key}: {url} ({})", facts.join("; "));
            checks.push(Check::new("backend", CheckStatus::Ok, text));
            let warnings = health.warnings.into_iter();
            checks.extend(warnings.map(|warning| {
                Check::new("backend", CheckStatus::Warn, format!("{key}: {warning}"))
            }));
        }
    }
}

fn folder(config: &Config) -> Check {
    let shown = config.data_dir.display();
    let (found, detail) = match fs::metadata(&config.data_dir) {
        Err(_) => (
            CheckStatus::Ok,
            format!("`{shown}` does not exist yet; the first start creates it"),
        ),
        Ok(metadata) if !metadata.is_dir() => (
            CheckStatus::Fail,
            format!("`{shown}` is not a folder; choose another with `--data`"),
        ),
        Ok(_) => match usable(&config.data_dir) {
            Ok(()) => (
                CheckStatus::Ok,
                format!("`{shown}` can be read and written"),
            ),
            Err((path, error)) => (
                CheckStatus::Fail,
                format!(
                    "`{}` cannot be read and written ({error}); fix its permissions or choose another folder with `--data`",
                    path.display()
                ),
            ),
        },
    };
    Check::new("data folder", found, detail)
}

/// Whether everything below the folder can be read and written; otherwise the first thing that cannot.
fn usable(folder: &Path) -> Result<(), (PathBuf, io::Error)> {
    let of = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    tempfile::Builder::new()
        .prefix(".probe-")
        .tempfile_in(folder)
        .map_err(of(folder))?;
    for entry in fs::read_dir(folder).map_err(of(folder))? {
        let path = entry.map_err(of(folder))?.path();
        let kind = match fs::metadata(&path) {
            // A running process may remove files that it no longer needs.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => continue,
            kind => kind.map_err(of(&path))?,
        };
        if kind.is_dir() {
            usable(&path)?;
        } else if kind.is_file() {
            let mut both = OpenOptions::new();
            both.read(true).write(true);
            both.open(&path).map_err(of(&path))?;
        }
    }
    Ok(())
}

fn port(key: &'static str, address: &str) -> Check {
    let full = if address.starts_with(':') {
        format!("0.0.0.0{address}")
    } else {
        address.to_owned()
    };
    let (found, detail) = match TcpListener::bind(&full) {
        Ok(_) => (CheckStatus::Ok, format!("{full} is free")),
        Err(error) => (
            CheckStatus::Fail,
            format!("{full} cannot be used ({error}); set `{key}` to another address"),
        ),
    };
    Check::new(key, found, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_below_the_folder_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        fs::write(folder.path().join("log/1.log"), "x").unwrap();
        usable(folder.path()).unwrap();
        // Permissions mean nothing to root; a link to nowhere cannot be opened by any user.
        let broken = folder.path().join("log/2.log");
        std::os::unix::fs::symlink("nowhere", &broken).unwrap();
        assert_eq!(usable(folder.path()).unwrap_err().0, broken);
    }
}
