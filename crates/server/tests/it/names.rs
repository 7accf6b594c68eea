//! A name server whose answers change from one question to the next, and a worker that must not be led by them.
//!
//! Source: RFC 1035, section 4.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::client::Client;
use crate::fleet::{run, wait_task};
use crate::process::{World, able};
use crate::web::{Reply, serve, serve_at};

/// The port that the system's resolver asks.
const PORT: u16 = 53;

/// Addresses of version 4: the type and the class of a question.
const A_IN: [u8; 4] = [0, 1, 0, 1];

/// The answer to one question: an address for `A`, nothing for any other type.
fn answer(asked: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let name = asked.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = asked.get(12..12 + name + 5)?;
    let is_address = question.ends_with(&A_IN);
    let mut reply = asked[..2].to_vec();
    // A response to a recursive query, one question, an answer or none.
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    reply.extend(question);
    if is_address {
        // The name of the question, good for no time.
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// Answers each look-up of a name with the next of these addresses, until the test's process ends. Gives the count of
/// look-ups; nothing where the port is not available.
fn rebind(at: Ipv4Addr, addresses: [Ipv4Addr; 2]) -> Option<Arc<AtomicUsize>> {
    let socket = UdpSocket::bind((at, PORT)).ok()?;
    let count = Arc::new(AtomicUsize::new(0));
    let lookups = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let asked = &buffer[..length];
            let number = lookups.load(Ordering::SeqCst);
            let Some(reply) = answer(asked, addresses[number % 2]) else {
                continue;
            };
            if reply[7] == 1 {
                lookups.fetch_add(1, Ordering::SeqCst);
            }
            socket.send_to(&reply, from).ok();
        }
    });
    Some(count)
}

#[test]
fn a_name_that_leads_elsewhere_at_the_next_look_up_leads_nowhere_it_should_not() {
    let unshare = Command::new("unshare").args(["--mount", "true"]).status();
    if !able("unshare", unshare.is_ok_and(|status| status.success())) {
        return;
    }
    let reached = Arc::new(AtomicUsize::new(0));
    let kept = Arc::clone(&reached);
    let inside = serve(move |_| {
        kept.fetch_add(1, Ordering::SeqCst);
        Reply::text(200, "secret")
    });
    // The same port at an address that hits may go to.
    let allowed = Ipv4Addr::new(127, 0, 0, 2);
    let outside = serve_at((allowed, inside.port()), |_| Reply::text(200, "fine"));
    let [_, _, c, d] = std::process::id().to_be_bytes();
    let server = Ipv4Addr::new(127, 53, c, d.clamp(1, 254));
    let lookups = rebind(server, [allowed, Ipv4Addr::LOCALHOST]);
    if !able("unshare", lookups.is_some()) {
        return;
    }
    let mut world = World::new();
    world.ask_names_of(server.into());
    world.set("TOWPATH_FLEET__WORKER__ALLOW", outside);
    world.set("WORKER_RETRY_MAX", "0");
    let _running = run(&world, "fleet.worker");
    let mut client = Client::new(world.hits);
    let (mut fine, mut refused) = (0, 0);
    for number in 0..20 {
        // A name of its own each time, so that nothing is remembered of it.
        let url = format!("http://site-{number}.rebind.example:{}/", outside.port());
        let config = json!({ "version": number, "data": { "url": url } }).to_string();
        assert_eq!(client.post("/config", &[], config.as_bytes()).status, 200);
        let id = client.get("/hit").json()["data"]["task_id"].clone();
        let task = wait_task(&world, id.as_str().unwrap());
        if task["body"] == "fine" {
            fine += 1;
        } else {
            let error = task["error"].as_str().unwrap_or_default();
            assert!(error.contains("refused"), "{task}");
            refused += 1;
        }
    }
    assert_eq!((fine, refused), (10, 10), "each is looked up once");
    assert_eq!(lookups.unwrap().load(Ordering::SeqCst), 20);
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}
