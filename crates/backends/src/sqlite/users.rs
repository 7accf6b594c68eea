//! Users.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use towpath_core::Result;
use towpath_core::port::Users;
use towpath_core::port::outbox::NewEvent;
use towpath_core::port::users::{Change, Changed, Created, RequestKey, User};
use uuid::Uuid;

use super::Sqlite;
use super::connection::failed;
use super::outbox::write_event;
use crate::sql::{signed, unsigned};

const COLUMNS: &str = "id, email, name, created_at, updated_at, version";

#[async_trait]
impl Users for Sqlite {
    async fn create(
        &self,
        user: User,
        event: NewEvent,
        request: Option<RequestKey>,
    ) -> Result<Created> {
        self.threads
            .write(move |connection| {
                if let Some(request) = &request
                    && let Some(before) = before(connection, request).map_err(failed)?
                {
                    return Ok(before);
                }
                let insert = "INSERT INTO users (id, email, name, created_at, updated_at, version)
                    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                let row = params![
                    user.id.to_string(),
                    user.email,
                    user.name,
                    super::text(user.created_at),
                    super::text(user.updated_at),
                    signed(user.version)
                ];
                let mut statement = connection.prepare_cached(insert).map_err(failed)?;
                match statement.execute(row) {
                    Ok(_) => {}
                    Err(error) if is_taken(&error) => return Ok(Created::EmailTaken),
                    Err(error) => return Err(failed(error)),
                }
                write_event(connection, &event).map_err(failed)?;
                if let Some(request) = request {
                    let insert =
                        "INSERT INTO requests (key, digest, user_id, email, name, created_at)
                        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
                    let row = params![
                        request.key,
                        request.digest,
                        user.id.to_string(),
                        user.email,
                        user.name,
                        super::text(user.created_at)
                    ];
                    connection.execute(insert, row).map_err(failed)?;
                }
                Ok(Created::New)
            })
            .await
            .inspect(|_| self.committed.notify_one())
    }

    async fn find(&self, id: Uuid) -> Result<Option<User>> {
        self.threads
            .read(move |connection| find(connection, id).map_err(failed))
            .await
    }

    async fn list(&self, after: Option<Uuid>, max: usize) -> Result<Vec<User>> {
        let after = after.map_or_else(String::new, |id| id.to_string());
        let list = move |connection: &Connection| -> rusqlite::Result<Vec<User>> {
            let select = format!("SELECT {COLUMNS} FROM users WHERE id > ?1 ORDER BY id LIMIT ?2");
            let mut statement = connection.prepare_cached(&select)?;
            let rows = statement.query_map(params![after, signed(max as u64)], user)?;
            rows.collect()
        };
        self.threads
            .read(move |connection| list(connection).map_err(failed))
            .await
    }

    async fn update(&self, change: Change, event: NewEvent) -> Result<Changed> {
        self.threads
            .write(move |connection| {
                let Some(mut user) = find(connection, change.id).map_err(failed)? else {
                    return Ok(Changed::Absent);
                };
                if change.version.is_some_and(|version| version != user.version) {
                    return Ok(Changed::Version(user.version));
                }
                user.email = change.email;
                user.name = change.name;
                user.updated_at = change.updated_at;
                user.version += 1;
                let update =
                    "UPDATE users SET email = ?2, name = ?3, updated_at = ?4, version = ?5 WHERE id = ?1";
                let row = params![
                    user.id.to_string(),
                    user.email,
                    user.name,
                    super::text(user.updated_at),
                    signed(user.version)
                ];
                let mut statement = connection.prepare_cached(update).map_err(failed)?;
                match statement.execute(row) {
                    Ok(_) => {}
                    Err(error) if is_taken(&error) => return Ok(Changed::EmailTaken),
                    Err(error) => return Err(failed(error)),
                }
                write_event(connection, &event).map_err(failed)?;
                Ok(Changed::Done(user))
            })
            .await
            .inspect(|_| self.committed.notify_one())
    }

    async fn delete(&self, id: Uuid, version: Option<u64>, event: NewEvent) -> Result<Changed> {
        self.threads
            .write(move |connection| {
                let Some(user) = find(connection, id).map_err(failed)? else {
                    return Ok(Changed::Absent);
                };
                if version.is_some_and(|version| version != user.version) {
                    return Ok(Changed::Version(user.version));
                }
                let delete = "DELETE FROM users WHERE id = ?1";
                connection
                    .execute(delete, [id.to_string()])
                    .map_err(failed)?;
                write_event(connection, &event).map_err(failed)?;
                Ok(Changed::Done(user))
            })
            .await
            .inspect(|_| self.committed.notify_one())
    }

    async fn forget_requests(&self, time: Timestamp, max: usize) -> Result<u64> {
        let delete = "DELETE FROM requests WHERE key IN
            (SELECT key FROM requests WHERE created_at < ?1 LIMIT ?2)";
        self.threads
            .write(move |connection| {
                let count = connection
                    .execute(delete, params![super::text(time), signed(max as u64)])
                    .map_err(failed)?;
                Ok(count as u64)
            })
            .await
    }
}

/// The result of the request when it came before.
fn before(connection: &Connection, request: &RequestKey) -> rusqlite::Result<Option<Created>> {
    let select = "SELECT digest, user_id, email, name, created_at FROM requests WHERE key = ?1";
    let mut statement = connection.prepare_cached(select)?;
    let found = statement.query_row([&request.key], |row| {
        let digest: String = row.get(0)?;
        if digest != request.digest {
            return Ok(Created::KeyTaken);
        }
        let created_at = super::time(row, 4)?;
        Ok(Created::Before(User {
            id: super::id(row, 1)?,
            email: row.get(2)?,
            name: row.get(3)?,
            created_at,
            updated_at: created_at,
            version: 1,
        }))
    });
    found.optional()
}

fn find(connection: &Connection, id: Uuid) -> rusqlite::Result<Option<User>> {
    let select = format!("SELECT {COLUMNS} FROM users WHERE id = ?1");
    let mut statement = connection.prepare_cached(&select)?;
    statement.query_row([id.to_string()], user).optional()
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: super::id(row, 0)?,
        email: row.get(1)?,
        name: row.get(2)?,
        created_at: super::time(row, 3)?,
        updated_at: super::time(row, 4)?,
        version: unsigned(row.get(5)?),
    })
}

fn is_taken(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}
