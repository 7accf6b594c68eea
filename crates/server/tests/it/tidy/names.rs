//! Names of types and files that another room would have to explain: the field has a word for each.

use super::allowed::{self, Counts};
use super::tree;

/// Names of types, and what to call them.
const TYPES: &[(&str, &str)] = &[
    ("Desk", "QueueSession, QueueChannel, OrderStore"),
    ("Registrar", "Settler"),
    ("Office", "Settler"),
    ("Bench", "ReadyBuffer"),
    ("Lanes", "ReadyBuffer"),
    ("Spot", "RecordPosition"),
    ("Shelf", "FetchBuffer"),
    ("Reach", "FetchProgress"),
    ("Lane", "AckTracker"),
    ("Heard", "ClientContext, ErrorLog"),
    ("Standing", "Consumer, MessageState"),
    ("Incoming", "ConsumerChannel"),
    ("Ticket", "DeliveryTag"),
    ("Arrival", "IncomingMessage"),
    ("Letter", "Publish, DeadLetter"),
    ("Hand", "InFlight"),
    ("Held", "InFlightMessage"),
    ("Terms", "LeaseTerms"),
    ("Tally", "Counters"),
    ("Gather", "Batcher"),
    ("Bell", "Wakeup, Notify"),
    ("Known", "QueueHandle"),
    ("Patience", "Timeouts"),
    ("Pace", "Deadlines, Backpressure"),
    ("Paced", "TimedStream"),
    ("Intake", "BodyReader"),
    ("Charge", "MemoryPermit"),
    ("Edge", "RequestLayer"),
    ("Gate", "AdmissionGate"),
    ("Place", "Destination, SourceSpan, AgentInfo"),
    ("Net", "ipnet::IpNet"),
    ("Door", "Listener"),
    ("Late", "the noun for it"),
    ("Books", "Reconciliation"),
    ("Look", "Audit"),
    ("Deed", "AuditEntry"),
    ("Said", "the Response of the request"),
    ("Told", "Notified, the Response of the request"),
    ("Asked", "the Request"),
    ("Wanted", "the Request"),
    ("Given", "the Response"),
    ("Volume", "LineCounters"),
    ("Room", "DiskUsage"),
    ("Needs", "HealthDeps"),
    ("Ending", "TaskExit"),
    ("OutOfTime", "DrainTimeout"),
    ("Verdict", "Disposition"),
    ("Stepped", "OffsetConflict"),
    ("Way", "the noun for it: Direction, Method, Source"),
    ("Wrong", "Invalid…, …Error"),
    ("Found", "the noun for it: CheckStatus, Entry"),
    ("Named", "…Name, …Params"),
];

/// Ends of paths, and what to call the file.
const FILES: &[(&str, &str)] = &[
    ("/desk.rs", "queue_session.rs, store.rs"),
    ("/registrar.rs", "settler.rs"),
    ("kafka/bench.rs", "buffers.rs"),
    ("/member.rs", "consumer.rs"),
    ("/lane.rs", "ack_tracker.rs"),
    ("/heard.rs", "client_context.rs"),
    ("/standing.rs", "consumer.rs"),
    ("/hand.rs", "in_flight.rs"),
    ("/tally.rs", "counters.rs"),
    ("/intake.rs", "enqueue.rs"),
    ("/hand_out.rs", "lease.rs"),
    ("/operate.rs", "admin.rs"),
    ("/gather.rs", "batcher.rs"),
    ("/nudge.rs", "notify.rs"),
    ("/tend.lua", "maintain.lua"),
    ("/tend_stream.lua", "maintain_stream.lua"),
    ("/bring_back.lua", "redrive.lua"),
    ("/leave.lua", "disconnect.lua"),
    ("http/guard.rs", "egress.rs"),
    ("http/net.rs", "ipnet::IpNet"),
    ("/descriptors.rs", "rlimit.rs"),
    ("/opened.rs", "backend_pool.rs"),
    ("/books.rs", "reconciliation.rs"),
    ("lines/pace.rs", "backpressure.rs"),
    ("accounts/layer.rs", "rate_limit.rs"),
    ("/hits.rs", "task/api.rs"),
    ("config/place.rs", "source_span.rs"),
    ("telemetry/disks.rs", "disk_usage.rs"),
];

fn declares(line: &str, name: &str) -> bool {
    let line = line.trim_start();
    let item = match line.strip_prefix("pub(") {
        Some(visibility) => visibility
            .split_once(") ")
            .map_or(visibility, |(_, rest)| rest),
        None => line.trim_start_matches("pub "),
    };
    ["struct ", "enum ", "trait ", "type "].iter().any(|kind| {
        item.strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_alphanumeric()))
    })
}

#[test]
fn refused_names_only_become_fewer() {
    let mut counts = Counts::new();
    for (name, text) in tree() {
        for (ending, _) in FILES {
            if name.ends_with(ending) {
                counts.insert((name.clone(), format!("file {ending}")), 1);
            }
        }
        if !name.ends_with(".rs") {
            continue;
        }
        for (refused, _) in TYPES {
            let found = text.lines().filter(|line| declares(line, refused)).count();
            if found > 0 {
                counts.insert((name.clone(), format!("type {refused}")), found);
            }
        }
    }
    eprintln!("{} refused names", counts.values().sum::<usize>());
    allowed::check("allowed_names.tsv", &counts, |pattern| {
        let (kind, refused) = pattern.split_once(' ').expect("kind and name");
        let list = if kind == "file" { FILES } else { TYPES };
        let better = list
            .iter()
            .find(|(name, _)| *name == refused)
            .map_or("", |(_, better)| better);
        format!("rename the {kind} `{refused}`, for instance: {better}")
    });
}

#[test]
fn a_declaration_is_matched_by_its_whole_name() {
    assert!(declares("    pub(super) struct Desk<T> {", "Desk"));
    assert!(declares("    pub(in super::super) enum Desk {", "Desk"));
    assert!(declares("type Desk = u8;", "Desk"));
    assert!(!declares("pub struct DeskTop;", "Desk"));
    assert!(!declares("let desk = Desk::new();", "Desk"));
}
