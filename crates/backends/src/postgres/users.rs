//! Users. A change and its event are one statement, so no transaction is left open by a caller that goes away.

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use towpath_core::Result;
use towpath_core::port::Users;
use towpath_core::port::outbox::NewEvent;
use towpath_core::port::users::{Change, Changed, Created, RequestKey, User};
use uuid::Uuid;

use super::outbox::{NEW, values};
use super::{Postgres, failed};
use crate::sql::{signed, unsigned};

const COLUMNS: &str = "id, email, name, created_at, updated_at, version";

/// The types of an event's values, which PostgreSQL does not find out by itself.
const TYPES: [&str; 8] = [
    "uuid",
    "text",
    "text",
    "text",
    "text",
    "text",
    "text",
    "timestamptz",
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
        let version = signed(user.version);
        let mut all: Vec<&(dyn ToSql + Sync)> = vec![
            &user.id,
            &user.email,
            &user.name,
            &user.created_at,
            &user.updated_at,
            &version,
        ];
        all.extend(values(&event));
        let mut client = self.connection().await?;
        let insert = client.prepare_cached(&insert).await.map_err(failed)?;
        let created = match request {
            None => match client.query_opt(&insert, &all).await.map_err(failed)? {
                Some(_) => Created::New,
                None => Created::EmailTaken,
            },
            Some(request) => {
                // One that is dropped is rolled back.
                let transaction = client.transaction().await.map_err(failed)?;
                // Waits for another request of this key that is under way.
                let key = "INSERT INTO requests (key, digest, user_id, email, name, created_at)
                    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO NOTHING";
                let key = transaction.prepare_cached(key).await.map_err(failed)?;
                let row: [&(dyn ToSql + Sync); 6] = [
                    &request.key,
                    &request.digest,
                    &user.id,
                    &user.email,
                    &user.name,
                    &user.created_at,
                ];
                if transaction.execute(&key, &row).await.map_err(failed)? == 0 {
                    let select = "SELECT digest, user_id, email, name, created_at FROM requests WHERE key = $1";
                    let row = transaction.query_one(select, &[&request.key]).await;
                    return Ok(before(&row.map_err(failed)?, &request.digest));
                }
                match transaction.query_opt(&insert, &all).await.map_err(failed)? {
                    Some(_) => {
                        transaction.commit().await.map_err(failed)?;
                        Created::New
                    }
                    None => Created::EmailTaken,
                }
            }
        };
        if created == Created::New {
            self.nudge.tell();
        }
        Ok(created)
    }

    async fn find(&self, id: Uuid) -> Result<Option<User>> {
        let client = self.connection().await?;
        let select = format!("SELECT {COLUMNS} FROM users WHERE id = $1");
        let select = client.prepare_cached(&select).await.map_err(failed)?;
        let row = client.query_opt(&select, &[&id]).await.map_err(failed)?;
        Ok(row.as_ref().map(user))
    }

    async fn list(&self, after: Option<Uuid>, max: usize) -> Result<Vec<User>> {
        let client = self.connection().await?;
        let select = format!(
            "SELECT {COLUMNS} FROM users WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2"
        );
        let select = client.prepare_cached(&select).await.map_err(failed)?;
        let rows = client.query(&select, &[&after, &signed(max as u64)]).await;
        Ok(rows.map_err(failed)?.iter().map(user).collect())
    }

    async fn update(&self, change: Change, event: NewEvent) -> Result<Changed> {
        let update = with_event(
            "UPDATE users SET email = $2, name = $3, updated_at = $4, version = version + 1
            WHERE id = $1 AND ($5::bigint IS NULL OR version = $5)",
            5,
        );
        let version = change.version.map(signed);
        let mut all: Vec<&(dyn ToSql + Sync)> = vec![
            &change.id,
            &change.email,
            &change.name,
            &change.updated_at,
            &version,
        ];
        all.extend(values(&event));
        self.changed(&update, &all, change.id).await
    }

    async fn delete(&self, id: Uuid, version: Option<u64>, event: NewEvent) -> Result<Changed> {
        let delete = with_event(
            "DELETE FROM users WHERE id = $1 AND ($2::bigint IS NULL OR version = $2)",
            2,
        );
        let version = version.map(signed);
        let mut all: Vec<&(dyn ToSql + Sync)> = vec![&id, &version];
        all.extend(values(&event));
        self.changed(&delete, &all, id).await
    }

    async fn forget_requests(&self, time: Timestamp, max: usize) -> Result<u64> {
        let delete = "DELETE FROM requests WHERE key IN
            (SELECT key FROM requests WHERE created_at < $1 LIMIT $2)";
        self.change(delete, &[&time, &signed(max as u64)]).await
    }
}

impl Postgres {
    async fn changed(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
        id: Uuid,
    ) -> Result<Changed> {
        let client = self.connection().await?;
        let statement = client.prepare_cached(statement).await.map_err(failed)?;
        match client.query_opt(&statement, values).await {
            Ok(Some(row)) => {
                self.nudge.tell();
                Ok(Changed::Done(user(&row)))
            }
            Ok(None) => {
                let select = "SELECT version FROM users WHERE id = $1";
                let row = client.query_opt(select, &[&id]).await.map_err(failed)?;
                Ok(row.map_or(Changed::Absent, |row| {
                    Changed::Version(unsigned(row.get(0)))
                }))
            }
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                Ok(Changed::EmailTaken)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// What the request did when it came before.
fn before(row: &Row, digest: &str) -> Created {
    if row.get::<_, &str>(0) != digest {
        return Created::KeyTaken;
    }
    let created_at = row.get(4);
    Created::Before(User {
        id: row.get(1),
        email: row.get(2),
        name: row.get(3),
        created_at,
        updated_at: created_at,
        version: 1,
    })
}

fn user(row: &Row) -> User {
    User {
        id: row.get(0),
        email: row.get(1),
        name: row.get(2),
        created_at: row.get(3),
        updated_at: row.get(4),
        version: unsigned(row.get(5)),
    }
}
