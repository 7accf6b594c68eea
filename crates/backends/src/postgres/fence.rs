//! The fence: no event is read while one with a lower place may still be committed.
//!
//! A transaction has the lock of a writer on `outbox` before it is given a place there, and keeps it until others can
//! see what it did. So those that hold that lock after the highest place was read are all that may still fill in a
//! lower one; once each of them is gone, what is missing up to that place stays missing. While they are there, events go
//! as far as no place is missing. Transactions that write elsewhere, in this database or another, hold nothing up,
//! however long they are open.

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

/// How long writers are waited for: the caller has a lease to prolong.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who may still commit an event.
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

/// How many events have the places right behind one another, and so leave none that a transaction may still fill in.
fn unbroken(events: &[Event], after: i64) -> usize {
    let places = events.iter().zip(after + 1..);
    places
        .take_while(|(event, place)| signed(event.seq) == *place)
        .count()
}

fn names(rows: &[Row]) -> HashSet<String> {
    rows.iter().map(|row| row.get(0)).collect()
}
