//! `towpath doctor`: everything that can be wrong around a process, with what to do about it.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use towpath_core::{ErrorKind, QueueName};

use super::client::Client;
use super::output::Color;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::{CurrentProblem, HealthView};
use crate::config::{Config, load};
use crate::wiring;

/// Options of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath doctor")]
pub(super) struct DoctorArgs {}

/// What one check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    found: Found,
    detail: String,
}

/// How long a database may take to answer.
const LOOK: Duration = Duration::from_secs(5);

/// A clock before this is wrong: the program did not exist.
const YEAR_2026: u64 = 1_767_225_600;

/// A difference between the clock and a file that no file system makes by itself.
const STEP: Duration = Duration::from_secs(5);

pub(super) async fn run(global: &Global, _: DoctorArgs) -> Result<Exit, Failure> {
    let mut checks = Vec::new();
    match load(&global.sources()?) {
        Ok(loaded) => {
            let detail = if loaded.warnings.is_empty() {
                "valid".to_owned()
            } else {
                loaded.warnings.join("; ")
            };
            let found = if loaded.warnings.is_empty() {
                Found::Ok
            } else {
                Found::Warn
            };
            checks.push(Check {
                check: "configuration",
                found,
                detail,
            });
            checks.push(folder(&loaded.config));
            checks.push(disk(&loaded.config));
            process(global, &loaded.config, &mut checks).await?;
            checks.extend(leftovers(&loaded.config).await);
            checks.push(clock(&loaded.config));
        }
        Err(problems) => checks.push(Check {
            check: "configuration",
            found: Found::Fail,
            detail: problems.to_string(),
        }),
    }
    if global.format == Format::Json {
        output::json(&checks)?;
    } else {
        for one in &checks {
            if global.quiet && one.found == Found::Ok {
                continue;
            }
            let (color, mark) = match one.found {
                Found::Ok => (Color::Green, "ok  "),
                Found::Warn => (Color::Yellow, "warn"),
                Found::Fail => (Color::Red, "FAIL"),
            };
            let mark = output::paint(&std::io::stdout(), color, mark);
            output::line(format!("{mark}  {}: {}", one.check, one.detail))?;
        }
    }
    Ok(if checks.iter().any(|one| one.found == Found::Fail) {
        Exit::Problems
    } else {
        Exit::Ok
    })
}

/// What the running process says of itself; when none answers, what a start would find.
async fn process(global: &Global, config: &Config, checks: &mut Vec<Check>) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let base = client.base();
    match running(&client).await {
        Ok((health, problems)) => {
            let (version, count) = (&health.version, problems.len());
            checks.push(Check {
                check: "process",
                found: Found::Ok,
                detail: format!(
                    "Towpath {version} answers at {base} and reports {count} problems; what follows is its answer"
                ),
            });
            checks.extend(health.facts.into_iter().map(|detail| Check {
                check: "process",
                found: Found::Ok,
                detail,
            }));
            checks.extend(problems.into_iter().map(|problem| {
                let figure = problem
                    .figure
                    .map_or_else(String::new, |figure| format!(", {figure}"));
                let found = match problem.severity.as_str() {
                    "page" => Found::Fail,
                    _ => Found::Warn,
                };
                let (name, subject) = (problem.problem, problem.subject);
                let (cause, next) = (problem.cause, problem.next_step);
                Check {
                    check: "problem",
                    found,
                    detail: format!("{name}, {subject}{figure}: {cause}. Next: {next}"),
                }
            }));
        }
        Err(Failure::Said(Exit::Unreachable, _)) => {
            checks.push(Check {
                check: "process",
                found: Found::Warn,
                detail: format!(
                    "none answers at {base}; start one with `towpath up`. What follows is the configuration of this shell"
                ),
            });
            checks.extend(store(config));
            checks.push(port("server.listen", &config.listen));
            checks.push(port("server.admin", &config.admin));
            look_at_backends(config, checks).await;
        }
        // A wrong token, or another program's server.
        Err(Failure::Said(_, detail)) => checks.push(Check {
            check: "process",
            found: Found::Fail,
            detail,
        }),
        Err(other) => return Err(other),
    }
    Ok(())
}

async fn running(client: &Client) -> Result<(HealthView, Vec<CurrentProblem>), Failure> {
    let health = client.get("/v1/health").await?;
    Ok((health, client.get("/v1/problems").await?))
}

/// Whether a start would find every file of the store; absent where there is none.
fn store(config: &Config) -> Option<Check> {
    let shown = config.data_dir.display();
    let found = match wiring::verify_store(&config.data_dir, wiring::Depth::Start) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            return Some(Check {
                check: "store",
                found: Found::Fail,
                detail: error.chain(),
            });
        }
    };
    let (mark, detail) = if found.faults.is_empty() {
        let (segments, messages) = (found.segments, found.messages);
        let text = format!("{segments} segments of the log are there, for {messages} messages");
        (Found::Ok, text)
    } else {
        let faults = found.faults.join("; ");
        let text =
            format!("{faults}; restore a backup, and `towpath verify {shown}` reads everything");
        (Found::Fail, text)
    };
    Some(Check {
        check: "store",
        found: mark,
        detail,
    })
}

/// Every backend and database that the configuration names, once. Files of embedded stores are not opened: a process may
/// have them.
async fn look_at_backends(config: &Config, checks: &mut Vec<Check>) {
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
            checks.push(durability(config));
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
            Ok(Ok(url)) => (Found::Ok, format!("{key}: {url} answers")),
            other => {
                let error = other.unwrap_or_else(|_| late()).err();
                let text = error.map_or_else(String::new, |error| error.chain());
                (Found::Fail, format!("{key}: {text}"))
            }
        };
        checks.push(Check {
            check: "database",
            found,
            detail,
        });
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
        Err(error) => checks.push(Check {
            check: "backend",
            found: Found::Fail,
            detail: format!("{key}: {}", error.chain()),
        }),
        Ok((url, health)) => {
            let facts = health.facts.iter();
            let facts: Vec<String> = facts
                .map(|(name, fact)| format!("{name}: {fact}"))
                .collect();
            checks.push(Check {
                check: "backend",
                found: Found::Ok,
                detail: format!("{key}: {url} ({})", facts.join("; ")),
            });
            checks.extend(health.warnings.into_iter().map(|detail| Check {
                check: "backend",
                found: Found::Warn,
                detail: format!("{key}: {detail}"),
            }));
        }
    }
}

/// Tasks that the worker of the reference system left in its own queue.
async fn leftovers(config: &Config) -> Option<Check> {
    let database = std::env::var("ASYNQ_DB").ok();
    let database = database.and_then(|text| text.parse().ok()).unwrap_or(1);
    let counted = wiring::count_leftovers(config.fleet.backend.expose(), database).await;
    let (found, detail) = match counted {
        Ok(0) => return None,
        Ok(count) => (
            Found::Warn,
            format!(
                "{count} tasks are left in the queue of the reference worker (database {database}); stop it and `towpath task adopt` adopts them"
            ),
        ),
        Err(error) => (Found::Warn, error.chain()),
    };
    Some(Check {
        check: "tasks",
        found,
        detail,
    })
}

fn durability(config: &Config) -> Check {
    let (found, detail) = match config.durability.as_str() {
        "fsync" => (Found::Ok, "fsync before every acknowledgement".to_owned()),
        other => (
            Found::Warn,
            format!("`{other}`: a power cut can lose what was acknowledged; `fsync` does not"),
        ),
    };
    Check {
        check: "durability",
        found,
        detail,
    }
}

fn clock(config: &Config) -> Check {
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ahead = newest(&config.data_dir)
        .and_then(|newest| newest.duration_since(now).ok())
        .unwrap_or_default();
    let (found, detail) = if since.as_secs() < YEAR_2026 {
        (
            Found::Fail,
            "the clock is years behind; delays and idempotency windows follow it: set it"
                .to_owned(),
        )
    } else if ahead >= STEP {
        (
            Found::Warn,
            format!(
                "the clock was set back: the newest file in `{}` is {} s ahead of it; set it, or wait so long",
                config.data_dir.display(),
                ahead.as_secs()
            ),
        )
    } else {
        (Found::Ok, "plausible".to_owned())
    };
    Check {
        check: "clock",
        found,
        detail,
    }
}

/// When a file in the folder or a folder of it was written to last.
fn newest(folder: &Path) -> Option<SystemTime> {
    let inner = ["log", "checkpoint"].map(|name| folder.join(name));
    let folders = std::iter::once(folder.to_owned()).chain(inner);
    let entries = folders
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten();
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok())
        .max()
}

fn folder(config: &Config) -> Check {
    let shown = config.data_dir.display();
    let (found, detail) = match fs::metadata(&config.data_dir) {
        Err(_) => (
            Found::Ok,
            format!("`{shown}` is not there yet; the first start makes it"),
        ),
        Ok(metadata) if !metadata.is_dir() => (
            Found::Fail,
            format!("`{shown}` is no folder; choose another with `--data`"),
        ),
        Ok(_) => match usable(&config.data_dir) {
            Ok(()) => (Found::Ok, format!("`{shown}` can be read and written")),
            Err((path, error)) => (
                Found::Fail,
                format!(
                    "`{}` cannot be read and written ({error}); mend its permissions or choose another folder with `--data`",
                    path.display()
                ),
            ),
        },
    };
    Check {
        check: "data folder",
        found,
        detail,
    }
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
            // A running process may remove what it has no use for.
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

fn disk(config: &Config) -> Check {
    // The folder may not be there yet; its disk is that of the nearest one above that is.
    let mut folder =
        std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    while !folder.exists() && folder.pop() {}
    let held = fs::metadata(config.data_dir.join(wiring::RESERVE)).map_or(0, |file| file.len());
    let free = rustix::fs::statvfs(&folder).map(|stat| {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        free.saturating_add(held)
    });
    let (found, detail) = match free {
        Ok(free) if free < config.disk_reserve => (
            Found::Fail,
            format!(
                "{} free, under `embedded.disk_reserve`: nothing is taken until space is freed",
                mebibytes(free)
            ),
        ),
        Ok(free) if free < config.disk_reserve * 4 => (
            Found::Warn,
            format!("{} free, near `embedded.disk_reserve`", mebibytes(free)),
        ),
        Ok(free) => (Found::Ok, format!("{} free", mebibytes(free))),
        Err(error) => (
            Found::Warn,
            format!("free space cannot be looked up: {error}"),
        ),
    };
    Check {
        check: "disk",
        found,
        detail,
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn port(key: &'static str, address: &str) -> Check {
    let full = if address.starts_with(':') {
        format!("0.0.0.0{address}")
    } else {
        address.to_owned()
    };
    let (found, detail) = match TcpListener::bind(&full) {
        Ok(_) => (Found::Ok, format!("{full} is free")),
        Err(error) => (
            Found::Fail,
            format!("{full} cannot be had ({error}); set `{key}` to another address"),
        ),
    };
    Check {
        check: key,
        found,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_below_the_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        fs::write(folder.path().join("log/1.log"), "x").unwrap();
        usable(folder.path()).unwrap();
        // Permissions mean nothing to root; a link to nowhere cannot be opened by anybody.
        let broken = folder.path().join("log/2.log");
        std::os::unix::fs::symlink("nowhere", &broken).unwrap();
        assert_eq!(usable(folder.path()).unwrap_err().0, broken);
    }
}
