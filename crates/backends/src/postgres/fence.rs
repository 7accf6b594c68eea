//! The fence: no event is read while an event with a lower sequence number may still commit.
//!
//! A transaction takes the writer's lock on `outbox` before it gets a sequence number, and holds it until its rows are
//! visible. So only the transactions that hold the lock after the highest number was read can still fill a gap below
//! it; once they have ended, a missing number stays missing. Until then events are read up to the first gap.
//! Transactions that write elsewhere, in this database or another, delay nothing, however long they are open.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use towpath_core::Result;
use towpath_core::port::outbox::Event;

use super::outbox::{HIGHEST, after, event};
use super::pool::Session;
use crate::sql::{signed, unsigned};

/// First and longest pause before the writers are checked again.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Longest wait for writers: the caller has a lease to extend.
const PATIENCE: Duration = Duration::from_secs(1);

/// Transactions that may still commit an event.
const WRITERS: &str = "SELECT virtualtransaction FROM pg_locks
    WHERE relation = 'outbox'::regclass AND mode = 'RowExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The events behind a place, up to one below which nothing is committed any more. None when another transaction still
/// may commit right behind the place after a second.
pub(super) async fn events(session: &Session, seq: u64, max: usize) -> Result<Vec<Event>> {
    let (select, page) = (after(), [seq.into(), max.into()]);
    let highest = format!("SELECT {HIGHEST}");
    let after = signed(seq);
    // One round trip, and the server does them in this order: the place before the writers, these before the rows.
    let (highest, found, rows) = tokio::try_join!(
        biased;
        session.one(&highest, &[]),
        session.query(WRITERS, &[]),
        session.query(&select, &page),
    )?;
    let mut events: Vec<Event> = rows.iter().map(event).collect();
    let highest = unsigned(highest.get(0));
    let mut open = names(&found);
    if !open.is_empty() && highest > seq {
        let whole = unbroken(&events, after);
        if whole > 0 {
            events.truncate(whole);
            return Ok(events);
        }
        let (mut pause, until) = (PAUSE, Instant::now() + PATIENCE);
        loop {
            let now = names(&session.query(WRITERS, &[]).await?);
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
        let rows = session.query(&select, &page).await?;
        events = rows.iter().map(event).collect();
    }
    events.retain(|event| event.seq <= highest);
    Ok(events)
}

/// Number of events with contiguous positions, which leave none for an open transaction.
fn unbroken(events: &[Event], after: i64) -> usize {
    let places = events.iter().zip(after + 1..);
    places
        .take_while(|(event, place)| signed(event.seq) == *place)
        .count()
}

fn names(rows: &[Row]) -> HashSet<String> {
    rows.iter().map(|row| row.get(0)).collect()
}
