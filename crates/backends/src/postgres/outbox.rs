//! The outbox.

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use towpath_core::Result;
use towpath_core::port::Outbox;
use towpath_core::port::outbox::{
    Backlog, Event, Filter, ListedEvent, NewEvent, OpenTransaction, READ_BYTES,
};
use uuid::Uuid;

use super::{Postgres, fence};
use crate::sql::event::{self, COLUMNS, NEW, Read, Rows, columns, listed, oldest, undecided};
use crate::sql::{Value, unsigned};

/// The highest place that was given out.
pub(super) const HIGHEST: &str =
    "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_seq_seq)";

/// An event of `outbox` that no relay of another program has sent.
const UNSENT: &str = "NOT EXISTS (SELECT FROM outbox_external e WHERE e.seq = outbox.seq AND e.id = outbox.id AND e.status = 'SENT')";

/// Transactions that wrote an event and are open for more than a second, those that are prepared among them.
const OPEN: &str = "SELECT
        coalesce('pid ' || l.pid, 'prepared transaction ' || p.gid, 'transaction ' || l.virtualtransaction),
        extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::bigint,
        coalesce(a.application_name, '')
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid'
        AND t.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_prepared_xacts p ON p.transaction = t.transactionid
    WHERE l.relation = 'outbox'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND coalesce(a.xact_start, p.prepared, '-infinity') < clock_timestamp() - interval '1 second'
    ORDER BY 2 DESC NULLS LAST LIMIT 10";

/// The values of an event, for [`NEW`].
pub(super) fn values(event: NewEvent) -> [Value; 9] {
    [
        event.id.into(),
        event.aggregate_type.into(),
        event.aggregate_id.into(),
        event.event_type.into(),
        event.topic.into(),
        event.key.into(),
        event.data.into(),
        event.created_at.into(),
        event.traceparent.into(),
    ]
}

/// Writes an event in the transaction that is open: it is sent when that is committed, and never was when it is not.
///
/// Lock the row that the event is about before, as an `UPDATE` does: the events of one row then have the order of its
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
    let insert = format!("INSERT INTO outbox ({NEW}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)");
    let values: [(&(dyn ToSql + Sync), Type); 9] = [
        (&event.id, Type::UUID),
        (&event.aggregate_type, Type::TEXT),
        (&event.aggregate_id, Type::TEXT),
        (&event.event_type, Type::TEXT),
        (&event.topic, Type::TEXT),
        (&event.key, Type::TEXT),
        (&event.data, Type::TEXT),
        (&event.created_at, Type::TIMESTAMPTZ),
        (&event.traceparent, Type::TEXT),
    ];
    // A statement without a name: a pooler may be between.
    client.execute_typed(&insert, &values).await.map(drop)
}

#[async_trait]
impl Outbox for Postgres {
    async fn name(&self) -> Result<Uuid> {
        let select = "SELECT name FROM outbox_relay";
        Ok(self.session().await?.one(select, &[]).await?.get(0))
    }

    async fn lease(&self, holder: Uuid, seconds: u32) -> Result<bool> {
        // A lease that ends later than one of now would was taken before the clock went back: it counts as one of now.
        // Relays of other programs hold theirs by migration 5, for a time of their own.
        let shorten =
            "UPDATE outbox_relay SET held_until = clock_timestamp() + make_interval(secs => $1)
            WHERE held_until > clock_timestamp() + make_interval(secs => $1)
            AND holder <> '00000000-0000-0000-0000-000000000001'";
        self.change(shorten, &[seconds.into()]).await?;
        let update = "UPDATE outbox_relay
            SET holder = $1, held_until = clock_timestamp() + make_interval(secs => $2)
            WHERE holder IS NULL OR holder = $1 OR held_until < clock_timestamp()";
        Ok(self
            .change(update, &[holder.into(), seconds.into()])
            .await?
            > 0)
    }

    async fn release(&self, holder: Uuid) -> Result<()> {
        let update = "UPDATE outbox_relay SET holder = NULL, held_until = NULL WHERE holder = $1";
        self.change(update, &[holder.into()]).await.map(drop)
    }

    async fn after(&self, seq: u64, max: usize) -> Result<Vec<Event>> {
        fence::events(&self.session().await?, seq, max).await
    }

    async fn position(&self) -> Result<u64> {
        let select = "SELECT position FROM outbox_relay";
        let row = self.session().await?.one(select, &[]).await?;
        Ok(unsigned(row.get(0)))
    }

    async fn knows(&self, seq: u64, id: Option<Uuid>) -> Result<bool> {
        let select = format!(
            "SELECT $1 <= {HIGHEST} AND NOT EXISTS (SELECT FROM outbox WHERE seq = $1 AND id <> $2)"
        );
        let session = self.session().await?;
        let row = session.one(&select, &[seq.into(), id.into()]).await?;
        Ok(row.get(0))
    }

    async fn begin_again(&self) -> Result<()> {
        let update = format!(
            "UPDATE outbox_relay SET name = $1, position = 0 WHERE sent_at IS NOT NULL AND NOT EXISTS (
                SELECT FROM outbox WHERE created_at <= outbox_relay.sent_at OR seq > {HIGHEST})"
        );
        if self.change(&update, &[Uuid::now_v7().into()]).await? > 0 {
            return Ok(());
        }
        let select = format!("SELECT position, {HIGHEST} FROM outbox_relay");
        let row = self.session().await?.one(&select, &[]).await?;
        Err(undecided(row.get(0), row.get(1)))
    }

    async fn check(&self) -> Result<()> {
        self.pool.check().await
    }

    async fn sent(&self, seq: u64) -> Result<()> {
        // An event that was refused and then accepted needs no record.
        let update = "WITH moved AS (
                UPDATE outbox_relay SET position = $1, sent_at = clock_timestamp() WHERE position < $1)
            DELETE FROM outbox_refused WHERE seq <= $1 AND given_up_at IS NULL";
        self.change(update, &[seq.into()]).await.map(drop)
    }

    async fn refused(&self, seq: u64, error: &str, attempts: u32) -> Result<u32> {
        let insert = "INSERT INTO outbox_refused (seq, attempts, error, given_up_at)
            VALUES ($1, 1, $2, CASE WHEN $3::integer <= 1 THEN clock_timestamp() END)
            ON CONFLICT (seq) DO UPDATE SET attempts = outbox_refused.attempts + 1, error = excluded.error,
            given_up_at = CASE WHEN outbox_refused.attempts + 1 >= $3::integer THEN clock_timestamp() END
            RETURNING attempts";
        let values = [seq.into(), error.into(), attempts.into()];
        let row = self.session().await?.one(insert, &values).await?;
        let attempts: i32 = row.get(0);
        Ok(attempts.unsigned_abs())
    }

    async fn write(&self, events: Vec<NewEvent>) -> Result<()> {
        let insert =
            format!("INSERT INTO outbox ({NEW}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)");
        let mut session = self.session().await?;
        let transaction = session.transaction().await?;
        for event in events {
            transaction.query(&insert, &values(event)).await?;
        }
        transaction.commit().await?;
        self.notifier.notify();
        Ok(())
    }

    async fn list(&self, filter: &Filter, max: usize) -> Result<Vec<ListedEvent>> {
        let conditions: [(&str, Value); 7] = [
            ("seq >", filter.after.into()),
            ("status =", filter.status.map(|one| one.as_str()).into()),
            ("aggregate_type =", filter.aggregate_type.clone().into()),
            ("aggregate_id =", filter.aggregate_id.clone().into()),
            ("id =", filter.id.into()),
            ("created_at >=", filter.from.into()),
            ("created_at <", filter.to.into()),
        ];
        let (mut values, mut condition) = (Vec::new(), Vec::new());
        for (column, value) in conditions {
            if value != Value::Null {
                values.push(value);
                condition.push(format!("{column} ${}", values.len()));
            }
        }
        let page = format!(
            "SELECT * FROM outbox_events WHERE {} ORDER BY seq LIMIT {max}",
            condition.join(" AND ")
        );
        let more = ", status, retry_count::bigint, error_message";
        let select = bounded(&page, Rows::View, more);
        let rows = self.session().await?.query(&select, &values).await?;
        let all = rows.iter().map(|row| {
            let [status, attempts, error] = [0, 1, 2].map(|number| COLUMNS + number);
            let state = (row.get(status), row.get(attempts), row.get(error));
            listed(event(row), state)
        });
        Ok(all.collect())
    }

    async fn backlog(&self) -> Result<Backlog> {
        let select = format!(
            "SELECT
            (SELECT count(*) FROM outbox WHERE seq > r.sent AND {UNSENT}),
            (SELECT count(*) FROM outbox_refused WHERE given_up_at IS NOT NULL),
            (SELECT created_at FROM outbox WHERE seq > r.sent AND {UNSENT} ORDER BY seq LIMIT 1),
            r.position, r.position > r.sent
            FROM (SELECT position, CASE WHEN position <= {HIGHEST} THEN position ELSE 0 END AS sent
                FROM outbox_relay) AS r"
        );
        let session = self.session().await?;
        let row = session.one(&select, &[]).await?;
        let waits_for = session.query(OPEN, &[]).await?;
        let waits_for = waits_for.iter().map(|row| OpenTransaction {
            id: row.get(0),
            age_seconds: row.get::<_, Option<i64>>(1).map(unsigned),
            application: row.get(2),
        });
        Ok(Backlog {
            new: unsigned(row.get(0)),
            failed: unsigned(row.get(1)),
            oldest: oldest(row.try_get(2)),
            ahead: row.get::<_, bool>(4).then(|| unsigned(row.get(3))),
            waits_for: waits_for.collect(),
        })
    }

    async fn kept(&self) -> Result<u64> {
        let select = "SELECT count(*) FROM outbox";
        let row = self.session().await?.one(select, &[]).await?;
        Ok(unsigned(row.get(0)))
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
        // Those that another program's relay stopped trying to send are in front of the position, and are sent from there.
        let external = "DELETE FROM outbox_external e USING outbox o
            WHERE o.seq = e.seq AND o.id = e.id AND e.status = 'FAILED' AND ($1::uuid IS NULL OR o.id = $1)";
        let count =
            self.change(&again, &[id.into()]).await? + self.change(external, &[id.into()]).await?;
        if count > 0 {
            self.notifier.notify();
        }
        Ok(count)
    }

    async fn purge(&self, time: Timestamp, max: usize) -> Result<u64> {
        let delete = format!(
            "DELETE FROM outbox WHERE seq IN (
            SELECT o.seq FROM outbox o LEFT JOIN outbox_refused f ON f.seq = o.seq
            WHERE o.created_at < $1 AND f.seq IS NULL
            AND (o.seq <= (SELECT position FROM outbox_relay WHERE position <= {HIGHEST})
                OR EXISTS (SELECT FROM outbox_external e WHERE e.seq = o.seq AND e.id = o.id AND e.status = 'SENT'))
            ORDER BY o.seq LIMIT $2)"
        );
        let count = self.change(&delete, &[time.into(), max.into()]).await?;
        let orphans = "DELETE FROM outbox_external e WHERE NOT EXISTS (
            SELECT FROM outbox o WHERE o.seq = e.seq AND o.id = e.id)";
        self.change(orphans, &[]).await?;
        Ok(count)
    }

    async fn committed(&self) {
        self.notifier.notified().await;
    }
}

impl Postgres {
    /// One statement, which is one transaction.
    pub(super) async fn change(&self, statement: &str, values: &[Value]) -> Result<u64> {
        self.session().await?.execute(statement, values).await
    }
}

/// The events behind place `$1`, at most `$2`.
pub(super) fn after() -> String {
    let page = format!("SELECT * FROM outbox WHERE seq > $1 AND {UNSENT} ORDER BY seq LIMIT $2");
    bounded(&page, Rows::Table, "")
}

/// The events of a page, no more than reach [`READ_BYTES`]: the server looks at the sizes, and sends nothing beyond.
fn bounded(page: &str, of: Rows, more: &str) -> String {
    let (columns, size) = (columns(of), event::size());
    format!(
        "SELECT {columns}{more} FROM (
            SELECT *, sum({size}) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - {size} AS before FROM ({page}) AS page
        ) AS sized WHERE before < {READ_BYTES} ORDER BY seq"
    )
}

/// An event in a row that begins with the columns of one.
pub(super) fn event(row: &Row) -> Event {
    let mut read = Read::default();
    let text = |read: &mut Read, name, column| -> Option<String> {
        read.take(name, row.try_get::<_, Option<String>>(column))
    };
    let event = NewEvent {
        id: read.take("id", row.try_get(1)),
        aggregate_type: text(&mut read, "aggregate_type", 2).unwrap_or_default(),
        aggregate_id: text(&mut read, "aggregate_id", 3).unwrap_or_default(),
        event_type: text(&mut read, "event_type", 4).unwrap_or_default(),
        topic: text(&mut read, "topic", 5).unwrap_or_default(),
        key: text(&mut read, "partition_key", 6),
        data: text(&mut read, "event_data", 7).unwrap_or_default(),
        created_at: read.take("created_at", row.try_get(8)),
        // A bad trace context does not refuse the event.
        traceparent: row.try_get(11).unwrap_or_default(),
    };
    let bytes: Option<i64> = read.take("event_data", row.try_get(9));
    let large: Option<&str> = row.get(10);
    read.event(row.get(0), event, bytes.unwrap_or(0), large)
}
