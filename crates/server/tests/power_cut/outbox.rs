//! The power of the users' database is cut: every user that was answered is there, and one event of each is in the stream.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::brokers::POSTGRES;
use crate::clients::{Clients, Request};
use crate::process::World;
use crate::servers::rounds;

/// Longest wait for the last event.
const SOON: Duration = Duration::from_secs(60);

/// Cuts as often as `TOWPATH_SEEDS` says.
pub(crate) fn tells_of_every_user_once() -> Result<(), Failed> {
    for round in rounds(&POSTGRES) {
        let (mut place, cuts) = round?;
        place.world.set("TOWPATH_ACCOUNTS__DATABASE", place.url());
        let mut running = place.up()?;
        let clients = Clients::start(&place.world, &place.ledger, user, true, true);
        for _ in 0..cuts {
            running = place.cut(running, &clients)?;
        }
        let doubted = clients.stop();
        let users = users(&place.world);
        let events = events(&place.world, &users);
        for email in &events {
            place
                .ledger
                .written("stream", email.trim_end_matches(DOMAIN));
        }
        drop(running);
        let published: BTreeSet<&String> = events.iter().collect();
        if let Some(silent) = users.iter().find(|user| !published.contains(user)) {
            return Err(format!("{}: no event tells of {silent}", place.name()).into());
        }
        let account = place
            .ledger
            .settle()
            .map_err(|wrong| format!("{}: {wrong}", place.name()))?;
        place.tell(&account, doubted);
        let more = published.len().abs_diff(users.len());
        eprintln!("{}: {more} events of users who are not there", place.name());
        // Those of transactions that only a sync that lied had made durable.
        if more > doubted {
            return Err(format!("{}: events without users", place.name()).into());
        }
    }
    Ok(())
}

const DOMAIN: &str = "@example.org";

fn user(id: &str) -> Request {
    Request {
        path: "/api/users",
        json: true,
        body: json!({ "email": format!("{id}{DOMAIN}"), "name": "x" }).to_string(),
        stored: 201,
    }
}

/// The addresses of all users.
fn users(world: &World) -> BTreeSet<String> {
    let (mut all, mut client) = (BTreeSet::new(), world.client());
    let mut path = "/api/users?limit=1000".to_owned();
    loop {
        let page = client.get(&path).json();
        let users = page["users"].as_array().unwrap().iter();
        all.extend(users.map(email));
        match page["next_cursor"].as_str() {
            Some(next) => path = format!("/api/users?limit=1000&cursor={next}"),
            None => return all,
        }
    }
}

fn email(of: &Value) -> String {
    of["email"].as_str().unwrap().to_owned()
}

/// The addresses of all events, in order, once every user has one; an event that has not come after a while is missing.
fn events(world: &World, users: &BTreeSet<String>) -> Vec<String> {
    let (mut all, began) = (Vec::new(), Instant::now());
    let (bearer, mut client) = (world.bearer(), world.admin_client());
    let headers = [("authorization", bearer.as_str())];
    let first = "/v1/streams/user-events/entries?max=1000";
    let mut path = first.to_owned();
    while began.elapsed() < SOON {
        let answer = client.send("GET", &path, &headers, b"").unwrap();
        let page = match answer.status {
            200 => answer.json(),
            _ => json!([]),
        };
        for entry in page.as_array().unwrap() {
            all.push(email(
                &serde_json::from_str(entry["payload"].as_str().unwrap()).unwrap(),
            ));
            path = format!("{first}&after={}", entry["offset"].as_str().unwrap());
        }
        if page.as_array().is_some_and(Vec::is_empty) {
            let published: BTreeSet<&String> = all.iter().collect();
            if users.iter().all(|user| published.contains(user)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    all
}
