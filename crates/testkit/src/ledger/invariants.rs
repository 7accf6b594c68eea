//! What must be true of every history, by name.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::{Entry, Event, Fate, fates, starts};

/// How soon a process that was started serves, whatever happened before.
pub const RECOVERY: Duration = Duration::from_secs(5);

/// One thing that must be true.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// How reports call it.
    pub name: &'static str,
    /// What breaks it, for people.
    find: fn(&Books<'_>) -> Vec<String>,
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

/// One breach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's.
    pub name: &'static str,
    /// What breaks it.
    pub what: String,
}

impl Display for Violation {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.name, self.what)
    }
}

/// Everything that is wrong with a history; the first few of each kind, and how many there are.
pub fn violations(history: &[Entry]) -> Vec<Violation> {
    const SHOWN: usize = 5;
    let books = Books {
        history,
        fates: fates(history),
    };
    let mut violations = Vec::new();
    for Invariant { name, find } in INVARIANTS {
        let found = find(&books);
        let more = found.len().saturating_sub(SHOWN);
        let shown = found.into_iter().take(SHOWN);
        let rest = (more > 0).then(|| format!("and {more} more"));
        violations.extend(shown.chain(rest).map(|what| Violation { name, what }));
    }
    violations
}

/// A history, and what became of each message.
struct Books<'a> {
    history: &'a [Entry],
    fates: BTreeMap<&'a str, Fate<'a>>,
}

impl Books<'_> {
    /// A sentence for each message of which this is true.
    fn messages(&self, wrong: impl Fn(&Fate<'_>) -> bool, sentence: &str) -> Vec<String> {
        let wrong = self.fates.iter().filter(|(_, fate)| wrong(fate));
        wrong.map(|(id, _)| format!("{id:?} {sentence}")).collect()
    }
}

fn acknowledged_is_present(books: &Books<'_>) -> Vec<String> {
    books.messages(
        |fate| fate.acknowledged_ns.is_some() && fate.written.is_empty(),
        "was acknowledged and is lost",
    )
}

fn refused_is_absent(books: &Books<'_>) -> Vec<String> {
    books.messages(
        |fate| fate.is_refused() && !fate.written.is_empty(),
        "was refused and came out",
    )
}

fn nothing_invented(books: &Books<'_>) -> Vec<String> {
    books.messages(
        |fate| fate.offers == 0 && !fate.written.is_empty(),
        "came out and nobody sent it",
    )
}

fn nothing_twice(books: &Books<'_>) -> Vec<String> {
    books.messages(|fate| fate.written.len() > 1, "came out more than once")
}

/// Of two messages of a key, the one that was acknowledged before the other was offered comes out first.
fn order_per_key(books: &Books<'_>) -> Vec<String> {
    let mut by_place: Vec<_> = books
        .fates
        .iter()
        .filter_map(|(id, fate)| Some((fate.written.first()?, fate.key?, *id, fate)))
        .collect();
    by_place.sort_unstable_by_key(|(place, ..)| **place);
    // Of what came out so far, the message of the key that was offered last.
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

fn no_torn_line(books: &Books<'_>) -> Vec<String> {
    let torn = books.history.iter().filter_map(|entry| match &entry.event {
        Event::Torn { text } => Some(format!("{text:?} in {:?}", entry.who)),
        _ => None,
    });
    torn.collect()
}

/// Otherwise the history itself has gaps, and proves nothing.
fn answers_have_offers(books: &Books<'_>) -> Vec<String> {
    let answered = |fate: &Fate<'_>| fate.acknowledged_ns.is_some() || fate.refusals > 0;
    books.messages(
        |fate| fate.offers == 0 && answered(fate),
        "was answered and never offered",
    )
}

fn serves_soon_after_a_start(books: &Books<'_>) -> Vec<String> {
    let starts = starts(books.history).into_iter();
    let late = starts.filter_map(|(who, took)| match took {
        Some(took) if took <= RECOVERY => None,
        Some(took) => Some(format!(
            "{who:?} took {took:?}, and {RECOVERY:?} is promised"
        )),
        None => Some(format!("{who:?} was started and never served")),
    });
    late.collect()
}
