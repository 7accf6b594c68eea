//! The shared suite over every backend: one row each, and each backend's own promises.

#![allow(
    clippy::disallowed_methods,
    reason = "tests have no supervisor, and use the machine's clock where a server does"
)]

mod database;
mod kafka;
mod postgres;
mod rabbitmq;
mod redis;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;
use towpath_core::SystemClock;
use towpath_testkit::{Subject, child_main, disk_fault, own_trials, servers, trials};

const SUBJECTS: &[Subject] = &[
    Subject {
        name: "embedded",
        descriptor: &towpath_backends::embedded::DESCRIPTOR,
        missing: || None,
        open: |folder| {
            Box::pin(async move {
                let url = format!("embedded:{}?segment=1MiB&reserve=0", folder.display());
                towpath_backends::open(&url, Arc::new(SystemClock::new())).await
            })
        },
        lose: None,
    },
    Subject {
        name: "redis",
        descriptor: &towpath_backends::redis::DESCRIPTOR,
        missing: servers::redis::missing,
        open: |folder| {
            Box::pin(async move {
                towpath_backends::open(&redis_url(&folder), Arc::new(SystemClock::new())).await
            })
        },
        lose: Some(|folder| Box::pin(async move { redis::lose(&redis_url(&folder)) })),
    },
    Subject {
        name: "rabbitmq",
        descriptor: &towpath_backends::rabbitmq::DESCRIPTOR,
        missing: servers::rabbitmq::missing,
        open: |folder| {
            Box::pin(async move {
                towpath_backends::open(&rabbitmq_url(&folder), Arc::new(SystemClock::new())).await
            })
        },
        lose: Some(|folder| Box::pin(async move { rabbitmq::lose(&rabbitmq_url(&folder)) })),
    },
    Subject {
        name: "kafka",
        descriptor: &towpath_backends::kafka::DESCRIPTOR,
        missing: servers::kafka::missing,
        open: |folder| {
            Box::pin(async move {
                towpath_backends::open(&kafka_url(&folder), Arc::new(SystemClock::new())).await
            })
        },
        lose: Some(|folder| {
            Box::pin(async move {
                // Made by the first call, and read back by this one.
                let url = kafka_url(&folder);
                kafka::deleted::lose(url.rsplit('=').next().expect("a prefix")).await;
            })
        }),
    },
    Subject {
        name: "postgres",
        descriptor: &towpath_backends::postgres::BACKEND,
        missing: servers::postgres::missing,
        open: |folder| {
            Box::pin(async move {
                towpath_backends::open(&postgres_url(&folder), Arc::new(SystemClock::new())).await
            })
        },
        lose: Some(|folder| Box::pin(async move { postgres::lose(&postgres_url(&folder)) })),
    },
];

fn redis_url(folder: &Path) -> String {
    url(folder, || servers::redis::shared().url())
}

fn rabbitmq_url(folder: &Path) -> String {
    url(folder, || servers::rabbitmq::shared().url())
}

fn kafka_url(folder: &Path) -> String {
    url(folder, || servers::kafka::shared().url())
}

/// The shared server with a database of its own for each folder.
fn postgres_url(folder: &Path) -> String {
    written(folder, |name| servers::postgres::shared().create(name))
}

/// The shared server with a prefix of its own for each folder; written down, so that other processes find it.
fn url(folder: &Path, server: impl FnOnce() -> String) -> String {
    written(folder, |name| format!("{}?prefix={name}-", server()))
}

/// The URL in the file of the folder, or the one of a new namespace.
fn written(folder: &Path, create: impl FnOnce(&str) -> String) -> String {
    let file = folder.join("url");
    if let Ok(url) = std::fs::read_to_string(&file) {
        return url;
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let url = create(&name);
    std::fs::write(file, &url).expect("the folder can be written");
    url
}

fn main() -> ExitCode {
    if child_main(SUBJECTS) || disk_fault::child_main(SUBJECTS) {
        return ExitCode::SUCCESS;
    }
    let mut all = trials(SUBJECTS);
    for subject in SUBJECTS.iter().filter(|subject| subject.name == "embedded") {
        all.extend(disk_fault::trials(subject));
    }
    all.extend(own_trials(&SUBJECTS[1], redis::promises()));
    all.extend(own_trials(&SUBJECTS[2], rabbitmq::promises()));
    all.extend(own_trials(&SUBJECTS[3], kafka::promises()));
    all.extend(own_trials(&SUBJECTS[4], postgres::promises()));
    all.extend(postgres::pooled_trials());
    all.extend(database::trials());
    let ended = libtest_mimic::run(&Arguments::from_args(), all);
    servers::redis::stop_shared();
    servers::rabbitmq::stop_shared();
    servers::kafka::stop_shared();
    servers::postgres::stop_shared();
    ended.exit_code()
}
