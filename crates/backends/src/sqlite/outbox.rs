//! The outbox.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use towpath_core::Result;
use towpath_core::port::Outbox;
use towpath_core::port::outbox::{Backlog, Event, Filter, ListedEvent, NewEvent, READ_BYTES};
use uuid::Uuid;

use super::Sqlite;
use super::connection::failed;
use crate::sql::event::{COLUMNS, NEW, Read, Rows, columns, listed, oldest, undecided};
use crate::sql::{signed, unsigned};

/// The highest place that was given out.
const HIGHEST: &str = "max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0),
    coalesce((SELECT max(seq) FROM outbox), 0))";

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
        (id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at,
        traceparent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let row = params![
        event.id.to_string(),
        event.aggregate_type,
        event.aggregate_id,
        event.event_type,
        event.topic,
        event.key,
        event.data,
        super::text(event.created_at),
        event.traceparent
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
        // A lease that ends later than one of now would was taken before the clock went back: it counts as one of now.
        let shorten = "UPDATE outbox_relay SET held_until = unixepoch('subsec') + ?1
            WHERE held_until > unixepoch('subsec') + ?1";
        let update = "UPDATE outbox_relay SET holder = ?1, held_until = unixepoch('subsec') + ?2
            WHERE holder IS NULL OR holder = ?1 OR held_until < unixepoch('subsec')";
        self.threads
            .write(move |connection| {
                connection.execute(shorten, [seconds]).map_err(failed)?;
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
            let columns = columns(Rows::Table);
            let select =
                format!("SELECT {columns} FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            let mut statement = connection.prepare_cached(&select)?;
            let mut rows = statement.query(params![signed(seq), signed(max as u64)])?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while bytes < READ_BYTES
                && let Some(row) = rows.next()?
            {
                let event = event(row)?;
                bytes += event.size();
                events.push(event);
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

    async fn knows(&self, seq: u64, id: Option<Uuid>) -> Result<bool> {
        let knows = move |connection: &Connection| -> rusqlite::Result<bool> {
            let highest = format!("SELECT {HIGHEST}");
            let highest: i64 = connection.prepare_cached(&highest)?.query_row([], first)?;
            let mut select = connection.prepare_cached("SELECT id FROM outbox WHERE seq = ?1")?;
            let found = select.query_row([signed(seq)], |row| {
                Ok(super::id(row, 0).unwrap_or_default())
            });
            let is_other = |found: Uuid| id.is_some_and(|id| id != found);
            Ok(signed(seq) <= highest && !found.optional()?.is_some_and(is_other))
        };
        self.threads
            .read(move |connection| knows(connection).map_err(failed))
            .await
    }

    async fn begin_again(&self) -> Result<()> {
        let update = format!(
            "UPDATE outbox_relay SET name = ?1, position = 0 WHERE sent_at IS NOT NULL AND NOT EXISTS (
                SELECT 1 FROM outbox WHERE created_at <= outbox_relay.sent_at OR seq > {HIGHEST})"
        );
        let select = format!("SELECT position, {HIGHEST} FROM outbox_relay");
        self.threads
            .write(move |connection| {
                let name = Uuid::now_v7().to_string();
                if connection.execute(&update, [name]).map_err(failed)? > 0 {
                    return Ok(());
                }
                let places = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
                let places = connection.query_row(&select, [], places);
                let (position, highest) = places.map_err(failed)?;
                Err(undecided(position, highest))
            })
            .await
    }

    async fn check(&self) -> Result<()> {
        // The writer begins a transaction for it, which a file that may not be written refuses.
        self.threads.write(|_| Ok(())).await
    }

    async fn sent(&self, seq: u64) -> Result<()> {
        let update = "UPDATE outbox_relay SET position = ?1, sent_at = ?2 WHERE position < ?1";
        // An event that was refused and then accepted needs no record.
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

    async fn refused(&self, seq: u64, error: &str, attempts: u32) -> Result<u32> {
        let insert = "INSERT INTO outbox_refused (seq, attempts, error, given_up_at)
            VALUES (?1, 1, ?2, CASE WHEN ?3 <= 1 THEN ?4 END)
            ON CONFLICT (seq) DO UPDATE SET attempts = attempts + 1, error = excluded.error,
            given_up_at = CASE WHEN attempts + 1 >= ?3 THEN ?4 END
            RETURNING attempts";
        let error = error.to_owned();
        let at = super::text(Timestamp::now());
        self.threads
            .write(move |connection| {
                let row = params![signed(seq), error, attempts, at];
                let attempts = connection.query_row(insert, row, first);
                Ok(u32::try_from(attempts.map_err(failed)?).unwrap_or(0))
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

    async fn list(&self, filter: &Filter, max: usize) -> Result<Vec<ListedEvent>> {
        let mut select = format!(
            "SELECT {}, status, retry_count, error_message FROM outbox_events WHERE seq > {}",
            columns(Rows::View),
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
        let list = move |connection: &Connection| -> rusqlite::Result<Vec<ListedEvent>> {
            let mut statement = connection.prepare(&select)?;
            let mut rows = statement.query(params_from_iter(values))?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while bytes < READ_BYTES
                && let Some(row) = rows.next()?
            {
                let event = event(row)?;
                bytes += event.size();
                let status: String = row.get(COLUMNS)?;
                let attempts: i64 = row.get(COLUMNS + 1)?;
                let error = row.get(COLUMNS + 2)?;
                events.push(listed(event, (&status, attempts, error)));
            }
            Ok(events)
        };
        self.threads
            .read(move |connection| list(connection).map_err(failed))
            .await
    }

    async fn backlog(&self) -> Result<Backlog> {
        let count = |connection: &Connection| -> rusqlite::Result<Backlog> {
            let place = format!("SELECT position, {HIGHEST} FROM outbox_relay");
            let places = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let (position, highest): (i64, i64) = connection.query_row(&place, [], places)?;
            let sent = if position <= highest { position } else { 0 };
            let new = "SELECT count(*) FROM outbox WHERE seq > ?1";
            let failed = "SELECT count(*) FROM outbox_refused WHERE given_up_at IS NOT NULL";
            let first_new = "SELECT created_at FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT 1";
            let time = |row: &Row<'_>| Ok(oldest(super::time(row, 0).map(Some)));
            Ok(Backlog {
                new: unsigned(connection.query_row(new, [sent], first)?),
                failed: unsigned(connection.query_row(failed, [], first)?),
                oldest: connection
                    .query_row(first_new, [sent], time)
                    .optional()?
                    .flatten(),
                ahead: (position > highest).then(|| unsigned(position)),
                // One transaction writes at a time, and its events have the highest places.
                waits_for: Vec::new(),
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
        let which = "SELECT f.seq FROM outbox_refused f JOIN outbox o ON o.seq = f.seq
            WHERE f.given_up_at IS NOT NULL AND (?1 IS NULL OR o.id = ?1)
            AND o.seq <= (SELECT position FROM outbox_relay)";
        let again = format!(
            "INSERT INTO outbox ({NEW}) SELECT {NEW} FROM outbox WHERE seq IN ({which}) ORDER BY seq"
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
        let delete = format!(
            "DELETE FROM outbox WHERE seq IN (
            SELECT o.seq FROM outbox o LEFT JOIN outbox_refused f ON f.seq = o.seq
            WHERE o.created_at < ?1 AND f.seq IS NULL
            AND o.seq <= (SELECT position FROM outbox_relay WHERE position <= {HIGHEST}) ORDER BY o.seq LIMIT ?2)"
        );
        self.threads
            .write(move |connection| {
                let row = params![super::text(time), signed(max as u64)];
                Ok(connection.execute(&delete, row).map_err(failed)? as u64)
            })
            .await
    }

    async fn committed(&self) {
        self.committed.notified().await;
    }
}

/// The number in the first column.
fn first(row: &Row<'_>) -> rusqlite::Result<i64> {
    row.get(0)
}

/// An event in a row that begins with the columns of one.
fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let mut read = Read::default();
    let text = |read: &mut Read, name, column| -> Option<String> {
        read.take(name, row.get::<_, Option<String>>(column))
    };
    let event = NewEvent {
        id: read.take("id", super::id(row, 1)),
        aggregate_type: text(&mut read, "aggregate_type", 2).unwrap_or_default(),
        aggregate_id: text(&mut read, "aggregate_id", 3).unwrap_or_default(),
        event_type: text(&mut read, "event_type", 4).unwrap_or_default(),
        topic: text(&mut read, "topic", 5).unwrap_or_default(),
        key: text(&mut read, "partition_key", 6),
        data: text(&mut read, "event_data", 7).unwrap_or_default(),
        created_at: read.take("created_at", super::time(row, 8)),
        // A bad trace context does not refuse the event.
        traceparent: row.get(11).unwrap_or_default(),
    };
    let large: Option<String> = row.get(10)?;
    Ok(read.event(row.get(0)?, event, row.get(9)?, large.as_deref()))
}
