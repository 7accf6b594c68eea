//! The promises of every database: one list of cases over each of them.

mod adopted;
mod fleet;
mod outbox;
mod postgres;
mod repair;
mod schema;
mod sqlite;
mod users;

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;
use towpath_core::database::Database;
use towpath_testkit::{servers, trial_where_able};

/// A database of its own for one case, and a function that opens it again.
pub(crate) struct World {
    url: String,
    _folder: TempDir,
}

impl World {
    /// An unused database without tables.
    fn bare(family: &'static str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let url = match family {
            "sqlite" => format!("sqlite:{}", folder.path().join("test.db").display()),
            _ => {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                servers::postgres::shared().create(&format!("case{number}"))
            }
        };
        Self {
            url,
            _folder: folder,
        }
    }

    /// Runs SQL of the family beside the database's own calls.
    fn sql(&self, statements: &str) {
        match self.url.strip_prefix("sqlite:") {
            Some(path) => {
                let connection = rusqlite::Connection::open(path).expect("opened");
                let busy = connection.busy_timeout(Duration::from_secs(5));
                busy.expect("set");
                connection.execute_batch(statements).expect(statements);
            }
            None => {
                let name = self.url.rsplit('/').next().expect("a name");
                servers::postgres::shared().query(name, statements);
            }
        }
    }

    const fn is_sqlite(&self) -> bool {
        matches!(self.url.as_bytes().first(), Some(b's'))
    }

    async fn open(&self) -> Database {
        towpath_backends::open_database(&self.url)
            .await
            .unwrap_or_else(|error| panic!("opening {}: {}", self.url, error.chain()))
    }

    /// The database with its tables.
    async fn database(&self) -> Database {
        let database = self.open().await;
        database.schema.up().await.expect("migrated");
        database
    }
}

/// A case: its name, and a function that panics when the promise is broken.
pub(crate) type Case = (&'static str, fn(World) -> Pin<Box<dyn Future<Output = ()>>>);

/// Names cases by their functions.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[super::Case] = &[$((stringify!($name), |world| Box::pin($name(world)))),*];
    };
}
use cases;

/// Every case over every database.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let areas = [
        ("users", users::CASES),
        ("outbox", outbox::CASES),
        ("repair", repair::CASES),
        ("schema", schema::CASES),
        ("fleet", fleet::CASES),
    ];
    for family in ["sqlite", "postgres"] {
        for (area, cases) in areas {
            for case in cases {
                trials.push(trial(family, area, case));
            }
        }
    }
    trials.extend(
        sqlite::CASES
            .iter()
            .map(|case| trial("sqlite", "own", case)),
    );
    for cases in [postgres::CASES, adopted::CASES] {
        trials.extend(cases.iter().map(|case| trial("postgres", "own", case)));
    }
    trials.extend(postgres::POOLED.iter().map(|case| {
        let (name, body) = *case;
        let missing = servers::postgres::pooler_missing();
        let name = format!("postgres::own::{name}");
        trial_where_able(name, "pgbouncer", missing, move || run("postgres", body))
    }));
    trials
}

fn trial(family: &'static str, area: &str, case: &'static Case) -> Trial {
    let missing = match family {
        "postgres" => servers::postgres::missing(),
        _ => None,
    };
    let body = case.1;
    trial_where_able(
        format!("{family}::{area}::{}", case.0),
        family,
        missing,
        move || run(family, body),
    )
}

fn run(
    family: &'static str,
    body: fn(World) -> Pin<Box<dyn Future<Output = ()>>>,
) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let case =
        async { tokio::time::timeout(Duration::from_secs(120), body(World::bare(family))).await };
    runtime
        .block_on(case)
        .map_err(|_| Failed::from("not finished within 120 s"))
}
