//! Users. A change and its event are one statement, so no transaction is left open by a caller that disconnects.

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use towpath_core::port::Users;
use towpath_core::port::outbox::NewEvent;
use towpath_core::port::users::{Change, Changed, Created, RequestKey, User};
use towpath_core::{Error, Result};
use uuid::Uuid;

use super::Postgres;
use super::error::cause;
use super::outbox::values;
use crate::sql::event::NEW;
use crate::sql::{Value, unsigned};

const COLUMNS: &str = "id, email, name, created_at, updated_at, version";

/// The types of an event's values, which PostgreSQL cannot infer.
const TYPES: [&str; 9] = [
    "uuid",
    "text",
    "text",
    "text",
    "text",
    "text",
    "text",
    "timestamptz",
    "text",
];

/// A change of `users` named `changed`, whose parameters end at `last`, and its event behind it.
fn with_event(change: &str, last: usize) -> String {
    let values: Vec<String> = TYPES
        .iter()
        .zip(last + 1..)
        .map(|(name, place)| format!("${place}::{name}"))
        .collect();
    let values = values.join(", ");
    format!(
        "WITH changed AS ({change} RETURNING {COLUMNS}),
        event AS (INSERT INTO outbox ({NEW}) SELECT {values} FROM changed)
        SELECT {COLUMNS} FROM changed"
    )
}

#[async_trait]
impl Users for Postgres {
    async fn create(
        &self,
        user: User,
        event: NewEvent,
        request: Option<RequestKey>,
    ) -> Result<Created> {
        let insert = with_event(
            "INSERT INTO users (id, email, name, created_at, updated_at, version)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (email) DO NOTHING",
            6,
        );
        let mut all = vec![
            user.id.into(),
            user.email.clone().into(),
            user.name.clone().into(),
            user.created_at.into(),
            user.updated_at.into(),
            user.version.into(),
        ];
        all.extend(values(event));
        let mut session = self.session().await?;
        let created = match request {
            None => match session.query(&insert, &all).await?.is_empty() {
                false => Created::New,
                true => Created::EmailTaken,
            },
            Some(request) => {
                // One that is dropped is rolled back.
                let transaction = session.transaction().await?;
                // Waits for another request of this key that is under way.
                let key = "INSERT INTO requests (key, digest, user_id, email, name, created_at)
                    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO NOTHING RETURNING key";
                let row = [
                    request.key.clone().into(),
                    request.digest.clone().into(),
                    user.id.into(),
                    user.email.into(),
                    user.name.into(),
                    user.created_at.into(),
                ];
                if transaction.query(key, &row).await?.is_empty() {
                    let select = "SELECT digest, user_id, email, name, created_at FROM requests WHERE key = $1";
                    let found = transaction.query(select, &[request.key.into()]).await?;
                    let gone = || Error::unavailable("the request of this key was just forgotten");
                    return before(found.first().ok_or_else(gone)?, &request.digest);
                }
                match transaction.query(&insert, &all).await?.is_empty() {
                    false => {
                        transaction.commit().await?;
                        Created::New
                    }
                    true => Created::EmailTaken,
                }
            }
        };
        if created == Created::New {
            self.notifier.notify();
        }
        Ok(created)
    }

    async fn find(&self, id: Uuid) -> Result<Option<User>> {
        let select = format!("SELECT {COLUMNS} FROM users WHERE id = $1");
        let rows = self.session().await?.query(&select, &[id.into()]).await?;
        rows.first().map(user).transpose()
    }

    async fn list(&self, after: Option<Uuid>, max: usize) -> Result<Vec<User>> {
        let select = format!(
            "SELECT {COLUMNS} FROM users WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2"
        );
        let values = [after.into(), max.into()];
        let rows = self.session().await?.query(&select, &values).await?;
        rows.iter().map(user).collect()
    }

    async fn update(&self, change: Change, event: NewEvent) -> Result<Changed> {
        let update = with_event(
            "UPDATE users SET email = $2, name = $3, updated_at = $4, version = version + 1
            WHERE id = $1 AND ($5::bigint IS NULL OR version = $5)",
            5,
        );
        let mut all = vec![
            change.id.into(),
            change.email.into(),
            change.name.into(),
            change.updated_at.into(),
            change.version.into(),
        ];
        all.extend(values(event));
        self.changed(&update, &all, change.id).await
    }

    async fn delete(&self, id: Uuid, version: Option<u64>, event: NewEvent) -> Result<Changed> {
        let delete = with_event(
            "DELETE FROM users WHERE id = $1 AND ($2::bigint IS NULL OR version = $2)",
            2,
        );
        let mut all = vec![id.into(), version.into()];
        all.extend(values(event));
        self.changed(&delete, &all, id).await
    }

    async fn forget_requests(&self, time: Timestamp, max: usize) -> Result<u64> {
        let delete = "DELETE FROM requests WHERE key IN
            (SELECT key FROM requests WHERE created_at < $1 LIMIT $2)";
        self.change(delete, &[time.into(), max.into()]).await
    }
}

impl Postgres {
    async fn changed(&self, statement: &str, values: &[Value], id: Uuid) -> Result<Changed> {
        let session = self.session().await?;
        match session.query(statement, values).await {
            Ok(rows) if !rows.is_empty() => {
                self.notifier.notify();
                user(&rows[0]).map(Changed::Done)
            }
            Ok(_) => {
                let select = "SELECT version FROM users WHERE id = $1";
                let rows = session.query(select, &[id.into()]).await?;
                Ok(rows.first().map_or(Changed::Absent, |row| {
                    Changed::Version(unsigned(row.get(0)))
                }))
            }
            Err(error) if is_taken(&error) => Ok(Changed::EmailTaken),
            Err(error) => Err(error),
        }
    }
}

/// Whether a unique constraint was violated.
fn is_taken(error: &Error) -> bool {
    cause(error).and_then(tokio_postgres::Error::code) == Some(&SqlState::UNIQUE_VIOLATION)
}

/// The result of the request when it came before.
fn before(row: &Row, digest: &str) -> Result<Created> {
    if row.try_get::<_, &str>(0).map_err(unreadable)? != digest {
        return Ok(Created::KeyTaken);
    }
    let created_at = row.try_get(4).map_err(unreadable)?;
    Ok(Created::Before(User {
        id: row.try_get(1).map_err(unreadable)?,
        email: row.try_get(2).map_err(unreadable)?,
        name: row.try_get(3).map_err(unreadable)?,
        created_at,
        updated_at: created_at,
        version: 1,
    }))
}

fn user(row: &Row) -> Result<User> {
    Ok(User {
        id: row.try_get(0).map_err(unreadable)?,
        email: row.try_get(1).map_err(unreadable)?,
        name: row.try_get(2).map_err(unreadable)?,
        created_at: row.try_get(3).map_err(unreadable)?,
        updated_at: row.try_get(4).map_err(unreadable)?,
        version: unsigned(row.try_get(5).map_err(unreadable)?),
    })
}

fn unreadable(error: tokio_postgres::Error) -> Error {
    Error::corrupt("a row of users cannot be read").with_source(error)
}
