//! The outbox.

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use towpath_core::Result;
use towpath_core::port::Outbox;
use towpath_core::port::outbox::{Backlog, Event, Filter, Listed, NewEvent};
use uuid::Uuid;

use super::{Postgres, failed, fence};
use crate::sql::{listed, signed, unsigned};

/// What a new event fills, in the order of [`values`].
pub(super) const NEW: &str =
    "id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at";

/// The columns of an event, for [`event`].
pub(super) const COLUMNS: &str = "seq, id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at";

/// The parameters of an event, for [`NEW`].
pub(super) fn values(event: &NewEvent) -> [&(dyn ToSql + Sync); 8] {
    [
        &event.id,
        &event.aggregate_type,
        &event.aggregate_id,
        &event.event_type,
        &event.topic,
        &event.key,
        &event.data,
        &event.created_at,
    ]
}

/// Writes an event in the transaction that is open: it is sent when that is committed, and never was when it is not.
///
/// Lock what the event is about before, as an `UPDATE` does: the events of one thing then have the order of its
/// changes. A transaction that stays open after this holds back the events behind it.
///
/// ```
/// use towpath_backends::postgres::write_event;
/// use towpath_core::port::outbox::NewEvent;
///
/// # async fn example(mut client: tokio_postgres::Client, event: NewEvent) -> Result<(), tokio_postgres::Error> {
/// let transaction = client.transaction().await?;
/// transaction.execute("UPDATE orders SET state = 'paid' WHERE id = 7", &[]).await?;
/// write_event(&transaction, &event).await?;
/// transaction.commit().await
/// # }
/// ```
///
/// # Errors
/// Those of the insert; the tables must be there (`towpath migrate up`).
pub async fn write_event(
    client: &impl tokio_postgres::GenericClient,
    event: &NewEvent,
) -> std::result::Result<(), tokio_postgres::Error> {
    let insert = format!("INSERT INTO outbox ({NEW}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)");
    client.execute(&insert, &values(event)).await.map(drop)
}

#[async_trait]
impl Outbox for Postgres {
    async fn name(&self) -> Result<Uuid> {
        let client = self.connection().await?;
        let row = client.query_one("SELECT name FROM outbox_relay", &[]).await;
        Ok(row.map_err(failed)?.get(0))
    }

    async fn lease(&self, holder: Uuid, seconds: u32) -> Result<bool> {
        let update = "UPDATE outbox_relay
            SET holder = $1, held_until = clock_timestamp() + make_interval(secs => $2)
            WHERE holder IS NULL OR holder = $1 OR held_until < clock_timestamp()";
        Ok(self.change(update, &[&holder, &f64::from(seconds)]).await? > 0)
    }

    async fn release(&self, holder: Uuid) -> Result<()> {
        let update = "UPDATE outbox_relay SET holder = NULL, held_until = NULL WHERE holder = $1";
        self.change(update, &[&holder]).await.map(drop)
    }

    async fn after(&self, seq: u64, max: usize) -> Result<Vec<Event>> {
        let client = self.connection().await?;
        fence::events(&client, signed(seq), signed(max as u64)).await
    }

    async fn position(&self) -> Result<u64> {
        let client = self.connection().await?;
        let row = client
            .query_one("SELECT position FROM outbox_relay", &[])
            .await;
        Ok(unsigned(row.map_err(failed)?.get(0)))
    }

    async fn sent(&self, seq: u64) -> Result<()> {
        // What was refused at first and then taken needs no record of it.
        let update = "WITH moved AS (
                UPDATE outbox_relay SET position = $1, sent_at = clock_timestamp() WHERE position < $1)
            DELETE FROM outbox_refused WHERE seq <= $1 AND given_up_at IS NULL";
        self.change(update, &[&signed(seq)]).await.map(drop)
    }

    async fn refused(&self, seq: u64, error: &str, is_given_up: bool) -> Result<()> {
        let insert = "INSERT INTO outbox_refused (seq, attempts, error, given_up_at) VALUES ($1, 1, $2, $3)
            ON CONFLICT (seq) DO UPDATE SET
            attempts = outbox_refused.attempts + 1, error = excluded.error, given_up_at = excluded.given_up_at";
        let at = is_given_up.then(Timestamp::now);
        self.change(insert, &[&signed(seq), &error, &at])
            .await
            .map(drop)
    }

    async fn write(&self, events: Vec<NewEvent>) -> Result<()> {
        let mut client = self.connection().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        for event in &events {
            write_event(&*transaction, event).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        self.nudge.tell();
        Ok(())
    }

    async fn list(&self, filter: &Filter, max: usize) -> Result<Vec<Listed>> {
        let mut select = format!(
            "SELECT {COLUMNS}, status, retry_count::bigint, error_message FROM outbox_events WHERE seq > $1"
        );
        let after = signed(filter.after);
        let status = filter.status.map(|status| status.as_str());
        let conditions: [(&str, Option<&(dyn ToSql + Sync)>); 6] = [
            ("status =", status.as_ref().map(|value| value as _)),
            (
                "aggregate_type =",
                filter.aggregate_type.as_ref().map(|value| value as _),
            ),
            (
                "aggregate_id =",
                filter.aggregate_id.as_ref().map(|value| value as _),
            ),
            ("id =", filter.id.as_ref().map(|value| value as _)),
            (
                "created_at >=",
                filter.from.as_ref().map(|value| value as _),
            ),
            ("created_at <", filter.to.as_ref().map(|value| value as _)),
        ];
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&after];
        for (condition, value) in conditions {
            if let Some(value) = value {
                values.push(value);
                select.push_str(&format!(" AND {condition} ${}", values.len()));
            }
        }
        select.push_str(&format!(" ORDER BY seq LIMIT {max}"));
        let client = self.connection().await?;
        let rows = client.query(&select, &values).await.map_err(failed)?;
        let all = rows.iter().map(|row| {
            listed(
                row.get(0),
                event(row),
                (row.get(9), row.get(10), row.get(11)),
            )
        });
        Ok(all.collect())
    }

    async fn backlog(&self) -> Result<Backlog> {
        let select = "SELECT
            (SELECT count(*) FROM outbox WHERE seq > r.position),
            (SELECT count(*) FROM outbox_refused WHERE given_up_at IS NOT NULL),
            (SELECT created_at FROM outbox WHERE seq > r.position ORDER BY seq LIMIT 1)
            FROM outbox_relay r";
        let client = self.connection().await?;
        let row = client.query_one(select, &[]).await.map_err(failed)?;
        Ok(Backlog {
            new: unsigned(row.get(0)),
            failed: unsigned(row.get(1)),
            oldest: row.get(2),
        })
    }

    async fn kept(&self) -> Result<u64> {
        let client = self.connection().await?;
        let row = client.query_one("SELECT count(*) FROM outbox", &[]).await;
        Ok(unsigned(row.map_err(failed)?.get(0)))
    }

    async fn retry(&self, id: Option<Uuid>) -> Result<u64> {
        let again = format!(
            "WITH old AS (
                DELETE FROM outbox o USING outbox_refused f, outbox_relay r
                WHERE f.seq = o.seq AND f.given_up_at IS NOT NULL AND ($1::uuid IS NULL OR o.id = $1)
                AND o.seq <= r.position RETURNING o.*
            )
            INSERT INTO outbox ({NEW}) SELECT {NEW} FROM old ORDER BY old.seq"
        );
        let count = self.change(&again, &[&id]).await?;
        if count > 0 {
            self.nudge.tell();
        }
        Ok(count)
    }

    async fn purge(&self, time: Timestamp, max: usize) -> Result<u64> {
        let delete = "DELETE FROM outbox WHERE seq IN (
            SELECT o.seq FROM outbox o LEFT JOIN outbox_refused f ON f.seq = o.seq
            WHERE o.created_at < $1 AND f.seq IS NULL
            AND o.seq <= (SELECT position FROM outbox_relay) ORDER BY o.seq LIMIT $2)";
        self.change(delete, &[&time, &signed(max as u64)]).await
    }

    async fn committed(&self) {
        self.nudge.told().await;
    }
}

impl Postgres {
    /// One statement, which is one transaction.
    pub(super) async fn change(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64> {
        let client = self.connection().await?;
        let statement = client.prepare_cached(statement).await.map_err(failed)?;
        client.execute(&statement, values).await.map_err(failed)
    }
}

/// An event in a row that begins with [`COLUMNS`].
pub(super) fn event(row: &Row) -> NewEvent {
    NewEvent {
        id: row.get(1),
        aggregate_type: row.get(2),
        aggregate_id: row.get(3),
        event_type: row.get(4),
        topic: row.get(5),
        key: row.get(6),
        data: row.get(7),
        created_at: row.get(8),
    }
}
