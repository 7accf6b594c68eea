//! The shared suite: one list of cases, run over every backend.
//!
//! A case states one promise of a port's documentation, names no backend, and
//! gets a fresh and empty one. What a backend does not offer is tested to be
//! refused. [`mutants`] are wrong backends; each must turn a named case red.

mod effects;
mod kill;
mod kv;
pub mod mutants;
mod queue;
mod rate_limit;
mod routes;
mod stream;
mod world;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use towpath_core::backend::Capability;

pub use kill::child_main;
pub use world::{Subject, World};

/// A case's body.
pub type Body = fn(World) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    /// The promise, as a name.
    pub name: &'static str,
    /// What a backend must offer for it; without that it must refuse.
    pub needs: &'static [Capability],
    /// Panics when the promise is broken.
    pub body: Body,
}

/// Declares the cases of a port: a name, what it needs besides, and the function of that name.
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
fn areas() -> [(&'static str, Vec<Case>); 6] {
    [
        ("queue", queue::cases()),
        ("routes", routes::cases()),
        ("stream", stream::cases()),
        ("kv", kv::cases()),
        ("rate_limit", rate_limit::cases()),
        ("effects", effects::cases()),
    ]
}

/// Longer than any case may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Every case over every subject, and every mutant.
pub fn trials(subjects: &'static [Subject]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for subject in subjects {
        for (area, cases) in areas() {
            for case in cases {
                let name = format!("{}::{area}::{}", subject.name, case.name);
                let lacks = case
                    .needs
                    .iter()
                    .copied()
                    .find(|need| !subject.descriptor.offers(*need));
                trials.push(match lacks {
                    Some(lacks) => Trial::test(name, move || queue::refuses(subject, lacks)),
                    None => Trial::test(name, move || run(case, World::of(subject))),
                });
            }
        }
        trials.push(Trial::test(
            format!("{}::queue::survives_kill_9", subject.name),
            move || kill::survives(subject),
        ));
        for mutant in mutants::MUTANTS {
            let name = format!(
                "{}::mutants::{}_turns_{}_red",
                subject.name, mutant.name, mutant.caught_by
            );
            trials.push(Trial::test(name, move || {
                mutants::is_caught(mutant, subject)
            }));
        }
    }
    trials
}

/// Runs a case to its end.
fn run(case: Case, world: World) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { tokio::time::timeout(DEADLINE, (case.body)(world)).await })
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
