//! The outbox.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use towpath_core::Result;
use towpath_core::port::Outbox;
use towpath_core::port::outbox::{Backlog, Event, Filter, Listed, NewEvent, READ_BYTES};
use uuid::Uuid;

use super::Sqlite;
use super::connection::failed;
use crate::sql::{listed, signed, unsigned};

const COLUMNS: &str = "seq, id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at";

/// Writes an event in the transaction that is open: it is sent when that is committed, and never was when it is not.
///
/// ```
/// use towpath_backends::sqlite::write_event;
/// use towpath_core::port::outbox::NewEvent;
///
/// # fn example(event: NewEvent) -> rusqlite::Result<()> {
/// let mut connection = rusqlite::Connection::open("accounts.db")?;
/// let transaction = connection.transaction()?;
/// transaction.execute("UPDATE orders SET state = 'paid' WHERE id = 7", [])?;
/// write_event(&transaction, &event)?;
/// transaction.commit()
/// # }
/// ```
///
/// # Errors
/// Those of the insert; the tables must be there (`towpath migrate up`).
pub fn write_event(connection: &Connection, event: &NewEvent) -> rusqlite::Result<()> {
    let insert = "INSERT INTO outbox
        (id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let row = params![
        event.id.to_string(),
        event.aggregate_type,
        event.aggregate_id,
        event.event_type,
        event.topic,
        event.key,
        event.data,
        super::text(event.created_at)
    ];
    connection.prepare_cached(insert)?.execute(row).map(drop)
}

#[async_trait]
impl Outbox for Sqlite {
    async fn name(&self) -> Result<Uuid> {
        let name = |connection: &Connection| {
            connection.query_row("SELECT name FROM outbox_relay", [], |row| super::id(row, 0))
        };
        self.threads
            .read(move |connection| name(connection).map_err(failed))
            .await
    }

    async fn lease(&self, holder: Uuid, seconds: u32) -> Result<bool> {
        let update = "UPDATE outbox_relay SET holder = ?1, held_until = unixepoch('subsec') + ?2
            WHERE holder IS NULL OR holder = ?1 OR held_until < unixepoch('subsec')";
        self.threads
            .write(move |connection| {
                let count = connection.execute(update, params![holder.to_string(), seconds]);
                Ok(count.map_err(failed)? > 0)
            })
            .await
    }

    async fn release(&self, holder: Uuid) -> Result<()> {
        let update = "UPDATE outbox_relay SET holder = NULL, held_until = NULL WHERE holder = ?1";
        self.threads
            .write(move |connection| {
                let count = connection.execute(update, [holder.to_string()]);
                count.map(drop).map_err(failed)
            })
            .await
    }

    async fn after(&self, seq: u64, max: usize) -> Result<Vec<Event>> {
        let read = move |connection: &Connection| -> rusqlite::Result<Vec<Event>> {
            let select =
                format!("SELECT {COLUMNS} FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            let mut statement = connection.prepare_cached(&select)?;
            let mut rows = statement.query(params![signed(seq), signed(max as u64)])?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while bytes < READ_BYTES
                && let Some(row) = rows.next()?
            {
                let event = event(row)?;
                bytes += event.data.len();
                events.push(Event {
                    seq: unsigned(row.get(0)?),
                    event,
                });
            }
            Ok(events)
        };
        self.threads
            .read(move |connection| read(connection).map_err(failed))
            .await
    }

    async fn position(&self) -> Result<u64> {
        let position = |connection: &Connection| {
            connection.query_row("SELECT position FROM outbox_relay", [], |row| row.get(0))
        };
        self.threads
            .read(move |connection| position(connection).map(unsigned).map_err(failed))
            .await
    }

    async fn sent(&self, seq: u64) -> Result<()> {
        let update = "UPDATE outbox_relay SET position = ?1, sent_at = ?2 WHERE position < ?1";
        // What was refused at first and then taken needs no record of it.
        let forget = "DELETE FROM outbox_refused WHERE seq <= ?1 AND given_up_at IS NULL";
        self.threads
            .write(move |connection| {
                let row = params![signed(seq), super::text(Timestamp::now())];
                let mut statement = connection.prepare_cached(update).map_err(failed)?;
                statement.execute(row).map_err(failed)?;
                let mut statement = connection.prepare_cached(forget).map_err(failed)?;
                statement.execute([signed(seq)]).map(drop).map_err(failed)
            })
            .await
    }

    async fn refused(&self, seq: u64, error: &str, is_given_up: bool) -> Result<()> {
        let insert =
            "INSERT INTO outbox_refused (seq, attempts, error, given_up_at) VALUES (?1, 1, ?2, ?3)
            ON CONFLICT (seq) DO UPDATE SET
            attempts = attempts + 1, error = excluded.error, given_up_at = excluded.given_up_at";
        let error = error.to_owned();
        let at = is_given_up.then(|| super::text(Timestamp::now()));
        self.threads
            .write(move |connection| {
                let count = connection.execute(insert, params![signed(seq), error, at]);
                count.map(drop).map_err(failed)
            })
            .await
    }

    async fn write(&self, events: Vec<NewEvent>) -> Result<()> {
        self.threads
            .write(move |connection| {
                let mut written = events.iter().map(|event| write_event(connection, event));
                written.try_for_each(|written| written.map_err(failed))
            })
            .await
            .inspect(|()| self.committed.notify_one())
    }

    async fn list(&self, filter: &Filter, max: usize) -> Result<Vec<Listed>> {
        let mut select = format!(
            "SELECT {COLUMNS}, status, retry_count, error_message FROM outbox_events WHERE seq > {}",
            signed(filter.after)
        );
        let conditions = [
            ("status =", filter.status.map(|one| one.as_str().to_owned())),
            ("aggregate_type =", filter.aggregate_type.clone()),
            ("aggregate_id =", filter.aggregate_id.clone()),
            ("id =", filter.id.map(|id| id.to_string())),
            ("created_at >=", filter.from.map(super::text)),
            ("created_at <", filter.to.map(super::text)),
        ];
        let mut values = Vec::new();
        for (condition, value) in conditions {
            if let Some(value) = value {
                values.push(value);
                select.push_str(&format!(" AND {condition} ?{}", values.len()));
            }
        }
        select.push_str(&format!(" ORDER BY seq LIMIT {max}"));
        let list = move |connection: &Connection| -> rusqlite::Result<Vec<Listed>> {
            let mut statement = connection.prepare(&select)?;
            let rows = statement.query_map(params_from_iter(values), |row| {
                let status: String = row.get(9)?;
                let state = (status.as_str(), row.get(10)?, row.get(11)?);
                Ok(listed(row.get(0)?, event(row)?, state))
            })?;
            rows.collect()
        };
        self.threads
            .read(move |connection| list(connection).map_err(failed))
            .await
    }

    async fn backlog(&self) -> Result<Backlog> {
        let count = |connection: &Connection| -> rusqlite::Result<Backlog> {
            let number = |sql: &str| connection.query_row(sql, [], |row| row.get(0).map(unsigned));
            let new = "SELECT count(*) FROM outbox WHERE seq > (SELECT position FROM outbox_relay)";
            let failed = "SELECT count(*) FROM outbox_refused WHERE given_up_at IS NOT NULL";
            let oldest = "SELECT created_at FROM outbox WHERE seq >
                (SELECT position FROM outbox_relay) ORDER BY seq LIMIT 1";
            Ok(Backlog {
                new: number(new)?,
                failed: number(failed)?,
                oldest: connection
                    .query_row(oldest, [], |row| super::time(row, 0))
                    .optional()?,
            })
        };
        self.threads
            .read(move |connection| count(connection).map_err(failed))
            .await
    }

    async fn kept(&self) -> Result<u64> {
        let count = |connection: &Connection| {
            connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))
        };
        self.threads
            .read(move |connection| count(connection).map(unsigned).map_err(failed))
            .await
    }

    async fn retry(&self, id: Option<Uuid>) -> Result<u64> {
        let columns = COLUMNS.trim_start_matches("seq, ");
        let which = "SELECT f.seq FROM outbox_refused f JOIN outbox o ON o.seq = f.seq
            WHERE f.given_up_at IS NOT NULL AND (?1 IS NULL OR o.id = ?1)
            AND o.seq <= (SELECT position FROM outbox_relay)";
        let again = format!(
            "INSERT INTO outbox ({columns}) SELECT {columns} FROM outbox WHERE seq IN ({which}) ORDER BY seq"
        );
        let delete = format!("DELETE FROM outbox WHERE seq IN ({which})");
        let id = id.map(|id| id.to_string());
        self.threads
            .write(move |connection| {
                let count = connection.execute(&again, [&id]).map_err(failed)?;
                connection.execute(&delete, [&id]).map_err(failed)?;
                Ok(count as u64)
            })
            .await
    }

    async fn purge(&self, time: Timestamp, max: usize) -> Result<u64> {
        let delete = "DELETE FROM outbox WHERE seq IN (
            SELECT o.seq FROM outbox o LEFT JOIN outbox_refused f ON f.seq = o.seq
            WHERE o.created_at < ?1 AND f.seq IS NULL
            AND o.seq <= (SELECT position FROM outbox_relay) ORDER BY o.seq LIMIT ?2)";
        self.threads
            .write(move |connection| {
                let row = params![super::text(time), signed(max as u64)];
                Ok(connection.execute(delete, row).map_err(failed)? as u64)
            })
            .await
    }

    async fn committed(&self) {
        self.committed.notified().await;
    }
}

/// An event in a row that begins with [`COLUMNS`].
fn event(row: &Row<'_>) -> rusqlite::Result<NewEvent> {
    Ok(NewEvent {
        id: super::id(row, 1)?,
        aggregate_type: row.get(2)?,
        aggregate_id: row.get(3)?,
        event_type: row.get(4)?,
        topic: row.get(5)?,
        key: row.get(6)?,
        data: row.get(7)?,
        created_at: super::time(row, 8)?,
    })
}
