//! The order of the modules of each crate: a module uses those in front of it, so that there is no circle.

use std::collections::BTreeSet;

use super::{files, none};

/// The modules at the top of each crate, the lowest first.
const ORDER: [(&str, &[&str]); 6] = [
    (
        "core",
        &[
            "address",
            "attempt",
            "retry",
            "message",
            "limiter",
            "port",
            "backend",
            "breaker",
            "clock",
            "database",
            "error",
            "id",
            "log_throttle",
            "stall",
            "units",
            "wait_limit",
        ],
    ),
    (
        "backends",
        &[
            "broker", "duration", "identity", "private", "embedded", "task", "percent", "kafka",
            "sql", "postgres", "rabbitmq", "redis", "sqlite",
        ],
    ),
    (
        "towpath",
        &[
            "consumer",
            "disk",
            "engine",
            "failures",
            "job",
            "limiter",
            "shown_url",
            "traces",
            "net",
            "supervisor",
            "relay",
            "outbox",
            "pump",
            "queue",
            "sink",
            "stream",
            "worker",
        ],
    ),
    (
        "testkit",
        &[
            "certificates",
            "world",
            "disk_fault",
            "effects",
            "kill",
            "kv",
            "ledger",
            "mutants",
            "power_cut",
            "proxy",
            "queue",
            "rate_limit",
            "redeclare",
            "routes",
            "servers",
            "source_offsets",
            "stream",
            "unsupported",
        ],
    ),
    (
        "server",
        &[
            "documents",
            "token",
            "source",
            "telemetry",
            "last_resort",
            "http",
            "auth",
            "idempotency",
            "dashboard",
            "queue_settings",
            "apps",
            "config",
            "problems",
            "stores",
            "leftovers",
            "backup",
            "doctor",
            "admin",
            "wiring",
            "cli",
        ],
    ),
    (
        "bench",
        &[
            "baseline", "api", "limit", "workload", "args", "payload", "measure", "disk", "orders",
            "line", "load", "http", "compare", "decide", "fleet", "relay", "outbox", "queue",
            "print",
        ],
    ),
];

/// Arrows that still run back up. Remove an entry with its last use; add none.
const BACK: [(&str, &str, &str); 6] = [
    ("server", "telemetry", "http"),
    ("server", "telemetry", "config"),
    ("server", "http", "auth"),
    ("server", "http", "config"),
    ("server", "apps", "config"),
    ("server", "queue_settings", "config"),
];

/// The code of a file without comments and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The words that stand behind `start`, or in the braces behind it.
fn named<'a>(code: &'a str, start: &str) -> Vec<&'a str> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let first = |text: &'a str| {
        let text = text.trim_start();
        &text[..text.find(|letter| !is_word(letter)).unwrap_or(text.len())]
    };
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + start.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.push(first(rest));
            continue;
        };
        let (mut depth, mut begin) = (0, 0);
        for (at, letter) in list.char_indices() {
            match letter {
                ',' if depth == 0 => {
                    found.push(first(&list[begin..]));
                    begin = at + 1;
                }
                '}' if depth == 0 => {
                    found.push(first(&list[begin..]));
                    break;
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found
}

/// The module at the top that a file belongs to; none for `lib.rs`, `main.rs` and files of tests.
fn module_of(path: &str) -> Option<&str> {
    let is_test = path.ends_with("tests.rs") || path.ends_with("_test.rs");
    let top = path.split('/').next()?.trim_end_matches(".rs");
    (!is_test && !["lib", "main"].contains(&top)).then_some(top)
}

/// Pairs of modules of a crate, of which the first uses the second, each with the file.
fn arrows(crate_name: &str) -> Vec<(String, String, String)> {
    let folder = format!("crates/{crate_name}/src");
    let sources = files(&folder, "rs");
    let inner = |name: &str| name[folder.len() + 1..].to_owned();
    let paths: Vec<String> = sources.iter().map(|(name, _)| inner(name)).collect();
    let modules: BTreeSet<&str> = paths.iter().filter_map(|path| module_of(path)).collect();
    let mut found = Vec::new();
    for ((name, text), path) in sources.iter().zip(&paths) {
        let Some(from) = module_of(path) else {
            continue;
        };
        let code = code(text);
        let mut used = named(&code, "crate::");
        if !path.contains('/') || path.matches('/').count() == 1 && path.ends_with("/mod.rs") {
            used.extend(named(&code, "super::"));
        }
        for to in used {
            if to != from && modules.contains(to) {
                found.push((from.to_owned(), to.to_owned(), name.clone()));
            }
        }
    }
    found
}

#[test]
fn modules_use_those_below_them() {
    let mut problems = Vec::new();
    let mut back = BTreeSet::new();
    for (crate_name, order) in ORDER {
        let level = |module: &str| order.iter().position(|name| *name == module);
        for (from, to, file) in arrows(crate_name) {
            let (Some(above), Some(below)) = (level(&from), level(&to)) else {
                problems.push(format!(
                    "{crate_name}: `{from}` or `{to}` has no level in ORDER"
                ));
                continue;
            };
            let entry = (crate_name, from.as_str(), to.as_str());
            if below < above {
                continue;
            }
            match BACK.iter().find(|known| **known == entry) {
                Some(known) => drop(back.insert(known)),
                None => problems.push(format!("{file}: `{from}` uses `{to}`, which is above it")),
            }
        }
    }
    for entry in BACK.iter().filter(|entry| !back.contains(entry)) {
        problems.push(format!("{entry:?} is gone: remove it from BACK"));
    }
    none(problems);
}

#[test]
fn names_are_found_in_paths_and_lists() {
    let code = code(
        "use crate::{a::B, c, d::{e, f}};\n// crate::g\nlet x = crate::h::I;\n#[cfg(test)]\nmod tests { crate::j }",
    );
    assert_eq!(named(&code, "crate::"), ["a", "c", "d", "h"]);
}
