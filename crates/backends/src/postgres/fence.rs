//! The fence: no event is read while one with a lower place may still be committed.
//!
//! A transaction has the lock of a writer on `outbox` before it is given a place there, and keeps it until others can
//! see what it did. So those that hold that lock after the highest place was read are all that may still fill in a
//! lower one; once each of them is gone, what is missing up to that place stays missing. While they are there, events go
//! as far as no place is missing. Transactions that write elsewhere, in this database or another, hold nothing up,
//! however long they are open.

use std::collections::HashSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use deadpool_postgres::Client;
use futures_util::TryStreamExt;
use tokio_postgres::{Row, Statement};
use towpath_core::Result;
use towpath_core::port::outbox::{Event, READ_BYTES};

use super::failed;
use super::outbox::{COLUMNS, event};
use crate::sql::{signed, unsigned};

/// First and longest pause before the writers are looked at again.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long writers are waited for: the caller has a lease to prolong.
const PATIENCE: Duration = Duration::from_secs(1);

/// The highest place that was given out.
const HIGHEST: &str = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_seq_seq";

/// Who may still commit an event.
const WRITERS: &str = "SELECT virtualtransaction FROM pg_locks
    WHERE relation = 'outbox'::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The events behind a place, up to one below which nothing is committed any more. None when somebody still may commit
/// right behind the place after a second.
pub(super) async fn events(client: &Client, after: i64, max: i64) -> Result<Vec<Event>> {
    let select = format!("SELECT {COLUMNS} FROM outbox WHERE seq > $1 ORDER BY seq LIMIT $2");
    let highest = client.prepare_cached(HIGHEST).await.map_err(failed)?;
    let writers = client.prepare_cached(WRITERS).await.map_err(failed)?;
    let select = client.prepare_cached(&select).await.map_err(failed)?;
    // One round trip, and the server does them in this order: the place before the writers, these before the rows.
    let (highest, found, mut events) = tokio::try_join!(
        biased;
        client.query_one(&highest, &[]),
        client.query(&writers, &[]),
        read(client, &select, after, max),
    )
    .map_err(failed)?;
    let highest: i64 = highest.get(0);
    let mut open = names(&found);
    if !open.is_empty() && highest > after {
        let whole = unbroken(&events, after);
        if whole > 0 {
            events.truncate(whole);
            return Ok(events);
        }
        let (mut pause, until) = (PAUSE, Instant::now() + PATIENCE);
        loop {
            let now = names(&client.query(&writers, &[]).await.map_err(failed)?);
            open.retain(|writer| now.contains(writer));
            if open.is_empty() {
                break;
            }
            if Instant::now() > until {
                return Ok(Vec::new());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        events = read(client, &select, after, max).await.map_err(failed)?;
    }
    events.retain(|event| signed(event.seq) <= highest);
    Ok(events)
}

/// How many events have the places right behind one another, and so leave none that a transaction may still fill in.
fn unbroken(events: &[Event], after: i64) -> usize {
    let places = events.iter().zip(after + 1..);
    places
        .take_while(|(event, place)| signed(event.seq) == *place)
        .count()
}

/// Reads events until there are no more, or these are enough bytes; what the server sends beyond is thrown away.
async fn read(
    client: &Client,
    select: &Statement,
    after: i64,
    max: i64,
) -> std::result::Result<Vec<Event>, tokio_postgres::Error> {
    let mut rows = pin!(client.query_raw(select, [after, max]).await?);
    let (mut events, mut bytes) = (Vec::new(), 0);
    while bytes < READ_BYTES
        && let Some(row) = rows.try_next().await?
    {
        let event = event(&row);
        bytes += event.data.len();
        events.push(Event {
            seq: unsigned(row.get(0)),
            event,
        });
    }
    Ok(events)
}

fn names(rows: &[Row]) -> HashSet<String> {
    rows.iter().map(|row| row.get(0)).collect()
}
