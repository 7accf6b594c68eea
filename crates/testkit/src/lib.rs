//! The shared suite: one list of cases, run over every backend.
//!
//! A case states one promise of a port's documentation, names no backend, and
//! gets a fresh and empty one. A capability that a backend does not offer must be
//! refused. [`mutants`] are faulty backends; each must fail a named case.
//!
//! Beside it are the tools of the durability tests: a [`ledger`] of promises and results,
//! [power cuts](power_cut), real [`servers`].

#![allow(
    clippy::disallowed_methods,
    reason = "tests have no supervisor, and use the machine's clock where a server does"
)]

pub mod certificates;
pub mod disk_fault;
mod effects;
mod kill;
mod kv;
pub mod ledger;
pub mod mutants;
pub mod power_cut;
pub mod proxy;
mod queue;
mod rate_limit;
mod redeclare;
mod routes;
pub mod servers;
mod source_offsets;
mod stream;
mod unsupported;
mod world;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use libtest_mimic::{Completion, Failed, Trial};
use towpath_core::backend::Capability;

pub use kill::child_main;
pub use world::{Losing, Subject, World};

/// A case's body.
pub type Body = fn(World) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    /// The promise, as a name.
    pub name: &'static str,
    /// Capabilities that it needs; without them it is ignored.
    pub needs: &'static [Capability],
    /// Panics when the promise is broken.
    pub body: Body,
}

impl Case {
    /// A capability that it needs and the row does not offer.
    fn lacks(&self, subject: &Subject) -> Option<Capability> {
        let mut needs = self.needs.iter().copied();
        needs.find(|need| !subject.descriptor.offers(*need))
    }
}

/// Declares the cases of a port: a name, further capabilities, and the function of that name.
macro_rules! promises {
    ($port:ident: $($name:ident $(needs $($need:ident),+)?;)*) => {
        pub(crate) fn cases() -> Vec<$crate::Case> {
            vec![$($crate::Case {
                name: stringify!($name),
                needs: &[towpath_core::backend::Capability::$port $($(, towpath_core::backend::Capability::$need)+)?],
                body: |world| Box::pin($name(world)),
            }),*]
        }
    };
}
use promises;

/// The ports with their cases.
fn areas() -> [(&'static str, Vec<Case>); 7] {
    [
        ("queue", queue::cases()),
        ("routes", routes::cases()),
        ("stream", stream::cases()),
        ("kv", kv::cases()),
        ("rate_limit", rate_limit::cases()),
        ("effects", effects::cases()),
        ("source_offsets", source_offsets::cases()),
    ]
}

/// Longer than any case may take.
const DEADLINE: Duration = Duration::from_secs(180);

/// Names the rows and the abilities that are required, separated by commas: trials that cannot run without them fail
/// instead of being ignored.
const REQUIRE: &str = "TOWPATH_TEST_REQUIRE";

/// Abilities of the machine that tests may need.
const ABILITIES: &[&str] = &[
    power_cut::NAME,
    disk_fault::TOOL,
    "pgbouncer",
    "postgres",
    "s3",
    "tmpfs",
    "unprivileged",
];

fn required() -> Vec<String> {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    let names = required.split(',').map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Every case over every subject, every mutant, and every absence.
pub fn trials(subjects: &'static [Subject]) -> Vec<Trial> {
    let required = required();
    let is_known = |name: &str| {
        ABILITIES.contains(&name) || subjects.iter().any(|subject| subject.name == name)
    };
    let unknown = required.iter().filter(|name| !is_known(name)).map(|name| {
        let reason = format!("{REQUIRE} names `{name}`, which is not a row");
        unable(format!("{name}::is_there"), true, reason)
    });
    let rows = subjects.iter().flat_map(|subject| {
        let missing = (subject.missing)();
        let must_run = required.iter().any(|name| name == subject.name);
        trials_of(subject)
            .into_iter()
            .map(move |(name, run)| match (&missing, run) {
                (Some(reason), _) => unable(name, must_run, reason.clone()),
                (None, Run::Able(body)) => Trial::test(name, body),
                (None, Run::Unable(reason)) => unable(name, false, reason),
            })
    });
    unknown.chain(rows).collect()
}

/// Body of a trial, or why it cannot run.
enum Run {
    Able(Box<dyn FnOnce() -> Result<(), Failed> + Send>),
    Unable(String),
}

/// The trials of a row, by name.
fn trials_of(subject: &'static Subject) -> Vec<(String, Run)> {
    let mut trials = Vec::new();
    let mut add = |name: String, run: Run| trials.push((format!("{}::{name}", subject.name), run));
    for (area, cases) in areas() {
        for case in cases {
            let lacks = case.lacks(subject);
            let run = match lacks {
                None => Run::Able(Box::new(move || run(case, World::of(subject)))),
                Some(lacks) => Run::Unable(format!("no {}: see `unsupported`", lacks.as_str())),
            };
            add(format!("{area}::{}", case.name), run);
        }
    }
    for case in redeclare::cases() {
        let run = match (case.lacks(subject), subject.lose) {
            (Some(lacks), _) => Run::Unable(format!("no {}: see `unsupported`", lacks.as_str())),
            (None, None) => Run::Unable("it has no server".to_owned()),
            (None, Some(_)) => Run::Able(Box::new(move || run(case, World::of(subject)))),
        };
        add(format!("redeclare::{}", case.name), run);
    }
    for lacks in unsupported::absences(subject) {
        let name = format!("unsupported::refuses_{}", lacks.as_str().replace(' ', "_"));
        add(
            name,
            Run::Able(Box::new(move || unsupported::is_refused(subject, lacks))),
        );
    }
    if subject.descriptor.offers(Capability::Queue) {
        let survives = Run::Able(Box::new(move || kill::survives(subject)));
        add("queue::survives_kill_9".to_owned(), survives);
    }
    for mutant in mutants::MUTANTS {
        if mutants::applies(mutant, subject) {
            let name = format!("mutants::{}_turns_{}_red", mutant.name, mutant.caught_by);
            add(
                name,
                Run::Able(Box::new(move || mutants::is_caught(mutant, subject))),
            );
        }
    }
    trials
}

/// A trial that runs unless `missing` names a reason; with one it is shown as ignored with the reason,
/// and fails when `TOWPATH_TEST_REQUIRE` contains `ability`.
pub fn trial_where_able(
    name: impl Into<String>,
    ability: &str,
    missing: Option<String>,
    body: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    match missing {
        None => Trial::test(name, body),
        Some(reason) => {
            let must_run = required().iter().any(|name| name == ability);
            unable(name.into(), must_run, reason)
        }
    }
}

/// A trial that cannot run: ignored with the reason, or failed with it.
fn unable(name: String, must_run: bool, reason: String) -> Trial {
    Trial::ignorable_test(name, move || {
        if must_run {
            Err(Failed::from(reason))
        } else {
            Ok(Completion::ignored_with(reason))
        }
    })
}

pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Runs a case to its end.
fn run(case: Case, world: World) -> Result<(), Failed> {
    run_to_end((case.body)(world))
}

/// A promise of one row beyond the ports: a name, and a body that panics when the promise is broken.
pub type Own = (
    &'static str,
    fn() -> Pin<Box<dyn Future<Output = ()> + Send>>,
);

/// The trials of a row's own promises; ignored or failed as its cases are.
pub fn own_trials(subject: &'static Subject, promises: Vec<Own>) -> Vec<Trial> {
    let missing = (subject.missing)();
    let required = std::env::var(REQUIRE).unwrap_or_default();
    let must_run = required.split(',').any(|name| name.trim() == subject.name);
    promises
        .into_iter()
        .map(|(name, body)| {
            let name = format!("{}::own::{name}", subject.name);
            match &missing {
                Some(reason) => unable(name, must_run, reason.clone()),
                None => Trial::test(name, move || run_to_end(body())),
            }
        })
        .collect()
}

fn run_to_end(body: Pin<Box<dyn Future<Output = ()> + Send>>) -> Result<(), Failed> {
    let runtime = runtime()?;
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { tokio::time::timeout(DEADLINE, body).await })
    }));
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(format!("not finished within {DEADLINE:?}").into()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(text.unwrap_or_else(|| "panicked".to_owned()).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use libtest_mimic::Arguments;

    use super::unable;

    #[test]
    fn a_trial_that_cannot_run_is_ignored_and_fails_when_required() {
        for (must_run, failed, ignored) in [(false, 0, 1), (true, 1, 0)] {
            let trial = unable("case".to_owned(), must_run, "no server".to_owned());
            let outcome = libtest_mimic::run(&Arguments::default(), vec![trial]);
            assert_eq!((outcome.num_failed, outcome.num_ignored), (failed, ignored));
        }
    }
}
