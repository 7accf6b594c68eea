//! Invariants of every history, by name.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::{Entry, Event, Fate, fates, starts};

/// Longest time from the start of a process until it serves.
pub const RECOVERY: Duration = Duration::from_secs(5);

/// One invariant.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// Its name in reports.
    pub name: &'static str,
    /// A breach, described.
    find: fn(&Findings<'_>) -> Vec<String>,
}

/// All of them.
pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "acknowledged_is_present",
        find: acknowledged_is_present,
    },
    Invariant {
        name: "refused_is_absent",
        find: refused_is_absent,
    },
    Invariant {
        name: "nothing_invented",
        find: nothing_invented,
    },
    Invariant {
        name: "nothing_twice",
        find: nothing_twice,
    },
    Invariant {
        name: "order_per_key",
        find: order_per_key,
    },
    Invariant {
        name: "no_torn_line",
        find: no_torn_line,
    },
    Invariant {
        name: "answers_have_offers",
        find: answers_have_offers,
    },
    Invariant {
        name: "serves_soon_after_a_start",
        find: serves_soon_after_a_start,
    },
];

/// A breach of an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Name of the invariant.
    pub name: &'static str,
    /// Description.
    pub what: String,
}

impl Display for Violation {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.name, self.what)
    }
}

/// Every violation of a history: the first few of each invariant, and the number of the others.
pub fn violations(history: &[Entry]) -> Vec<Violation> {
    const SHOWN: usize = 5;
    let findings = Findings {
        history,
        fates: fates(history),
    };
    let mut violations = Vec::new();
    for Invariant { name, find } in INVARIANTS {
        let found = find(&findings);
        let more = found.len().saturating_sub(SHOWN);
        let shown = found.into_iter().take(SHOWN);
        let rest = (more > 0).then(|| format!("and {more} more"));
        violations.extend(shown.chain(rest).map(|what| Violation { name, what }));
    }
    violations
}

/// A history, and the fate of each message.
struct Findings<'a> {
    history: &'a [Entry],
    fates: BTreeMap<&'a str, Fate<'a>>,
}

impl Findings<'_> {
    /// A sentence for each message that matches.
    fn messages(&self, wrong: impl Fn(&Fate<'_>) -> bool, sentence: &str) -> Vec<String> {
        let wrong = self.fates.iter().filter(|(_, fate)| wrong(fate));
        wrong.map(|(id, _)| format!("{id:?} {sentence}")).collect()
    }
}

fn acknowledged_is_present(findings: &Findings<'_>) -> Vec<String> {
    findings.messages(
        |fate| fate.acknowledged_ns.is_some() && fate.written.is_empty(),
        "was acknowledged and is lost",
    )
}

fn refused_is_absent(findings: &Findings<'_>) -> Vec<String> {
    findings.messages(
        |fate| fate.is_refused() && !fate.written.is_empty(),
        "was refused and came out",
    )
}

fn nothing_invented(findings: &Findings<'_>) -> Vec<String> {
    findings.messages(
        |fate| fate.offers == 0 && !fate.written.is_empty(),
        "came out and was never sent",
    )
}

fn nothing_twice(findings: &Findings<'_>) -> Vec<String> {
    findings.messages(|fate| fate.written.len() > 1, "came out more than once")
}

/// Of two messages of a key, the one that was acknowledged before the other was offered comes out first.
fn order_per_key(findings: &Findings<'_>) -> Vec<String> {
    let mut by_place: Vec<_> = findings
        .fates
        .iter()
        .filter_map(|(id, fate)| Some((fate.written.first()?, fate.key?, *id, fate)))
        .collect();
    by_place.sort_unstable_by_key(|(place, ..)| **place);
    // The message of the key with the newest offer among those that came out so far.
    let mut latest = BTreeMap::<&str, (u64, &str)>::new();
    let mut wrong = Vec::new();
    for (_, key, id, fate) in by_place {
        let (offered, before) = *latest.entry(key).or_insert((fate.first_offer_ns, id));
        if fate.acknowledged_ns.is_some_and(|taken| taken < offered) {
            wrong.push(format!("{id:?} came out behind {before:?}, key {key:?}"));
        }
        if fate.first_offer_ns > offered {
            latest.insert(key, (fate.first_offer_ns, id));
        }
    }
    wrong
}

fn no_torn_line(findings: &Findings<'_>) -> Vec<String> {
    let torn = findings
        .history
        .iter()
        .filter_map(|entry| match &entry.event {
            Event::Torn { text } => Some(format!("{text:?} in {:?}", entry.who)),
            _ => None,
        });
    torn.collect()
}

/// Otherwise the history itself has gaps, and proves nothing.
fn answers_have_offers(findings: &Findings<'_>) -> Vec<String> {
    let answered = |fate: &Fate<'_>| fate.acknowledged_ns.is_some() || fate.refusals > 0;
    findings.messages(
        |fate| fate.offers == 0 && answered(fate),
        "was answered and never offered",
    )
}

fn serves_soon_after_a_start(findings: &Findings<'_>) -> Vec<String> {
    let starts = starts(findings.history).into_iter();
    let late = starts.filter_map(|(who, took)| match took {
        Some(took) if took <= RECOVERY => None,
        Some(took) => Some(format!(
            "{who:?} took {took:?}, and {RECOVERY:?} is promised"
        )),
        None => Some(format!("{who:?} was started and never served")),
    });
    late.collect()
}
