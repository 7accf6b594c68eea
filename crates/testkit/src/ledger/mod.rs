//! The ledger: a record of sent messages, answers and output, written during a run.
//!
//! Only the test writes it; the system under test does not report on itself. A history is a file of JSON
//! lines, one [`Entry`] each, in the order in which they happened as far as one line per system call can tell:
//!
//! ```text
//! {"at_ns":1200,"who":"p1","op":"offered","id":"p1-7","key":"p1"}
//! {"at_ns":4100,"who":"p1","op":"acknowledged","id":"p1-7"}
//! {"at_ns":9000,"who":"disk","op":"fault","what":"power cut"}
//! {"at_ns":9900,"who":"output","op":"written","id":"p1-7"}
//! ```
//!
//! An offer without an answer has an unknown outcome: its message may come out or not, but not twice.
//! [`violations`] finds broken invariants, [`Account`] counts.

mod invariants;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use invariants::{INVARIANTS, Invariant, RECOVERY, Violation, violations};

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Event {
    /// A message is about to be sent, for the first time or again.
    Offered {
        /// Unique id: the payload itself, where payloads are distinct.
        id: String,
        /// Messages of one key come out in the order in which they were accepted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// The system acknowledged the message.
    Acknowledged {
        /// Of the offer.
        id: String,
    },
    /// The system refused the message.
    Refused {
        /// Of the offer.
        id: String,
    },
    /// The message came out, at this place of the output.
    Written {
        /// Of the offer.
        id: String,
    },
    /// An incomplete line came out.
    Torn {
        /// The bytes found.
        text: String,
    },
    /// A process is being started.
    Started,
    /// The process that was started last under this name serves.
    Ready,
    /// The test injected a fault.
    Fault {
        /// For readers.
        what: String,
    },
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Nanoseconds since the ledger was begun, monotonic. Of an offer, before it was sent; of an answer, after it came.
    pub at_ns: u64,
    /// The producer, the process or the output it is about.
    pub who: String,
    /// An event.
    #[serde(flatten)]
    pub event: Event,
}

/// A history that is being written; shared by the threads of a run.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    began: Instant,
}

impl Ledger {
    /// Begins an empty history at this path.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn begin(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        fs::write(&path, "")?;
        Ok(Self {
            file: OpenOptions::new().append(true).open(&path)?,
            path,
            began: Instant::now(),
        })
    }

    /// Adds an entry, which is in the file when this returns.
    ///
    /// # Panics
    /// When it cannot be written: a ledger with gaps proves nothing.
    pub fn record(&self, who: &str, event: Event) {
        let at_ns = u64::try_from(self.began.elapsed().as_nanos()).expect("a run of some minutes");
        let entry = Entry {
            at_ns,
            who: who.to_owned(),
            event,
        };
        let mut line = serde_json::to_vec(&entry).expect("an entry is JSON");
        line.push(b'\n');
        (&self.file).write_all(&line).expect("the ledger's disk");
    }

    /// Records that a message is about to be sent.
    pub fn offered(&self, who: &str, id: &str, key: Option<&str>) {
        let (id, key) = (id.to_owned(), key.map(str::to_owned));
        self.record(who, Event::Offered { id, key });
    }

    /// Records that the system acknowledged the message.
    pub fn acknowledged(&self, who: &str, id: &str) {
        self.record(who, Event::Acknowledged { id: id.to_owned() });
    }

    /// Records that the system refused the message.
    pub fn refused(&self, who: &str, id: &str) {
        self.record(who, Event::Refused { id: id.to_owned() });
    }

    /// Records that the message came out.
    pub fn written(&self, who: &str, id: &str) {
        self.record(who, Event::Written { id: id.to_owned() });
    }

    /// Records a fault that the test injects.
    pub fn fault(&self, who: &str, what: impl Display) {
        let what = what.to_string();
        self.record(who, Event::Fault { what });
    }

    /// Reads the history written so far.
    ///
    /// # Errors
    /// As [`read`].
    pub fn history(&self) -> io::Result<Vec<Entry>> {
        read(&self.path)
    }

    /// Removes the history.
    pub fn discard(&self) {
        // A history that stays does no harm.
        fs::remove_file(&self.path).ok();
    }

    /// Checks the history, removes it when it is valid, and returns its counts.
    ///
    /// # Errors
    /// Every violation, and where the history was left.
    pub fn settle(&self) -> Result<Account, String> {
        let history = self.history().map_err(|error| error.to_string())?;
        let violations = violations(&history);
        if violations.is_empty() {
            self.discard();
            return Ok(Account::of(&history));
        }
        let mut report = format!("the history is in `{}`", self.path.display());
        for violation in violations {
            report.push_str(&format!("\n{violation}"));
        }
        Err(report)
    }
}

/// Reads a history.
///
/// # Errors
/// `InvalidData`, with the line number, for a line that is not an entry.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    parse(&fs::read_to_string(path)?)
}

fn parse(text: &str) -> io::Result<Vec<Entry>> {
    let entry = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            let what = format!("line {} of the history: {error}", index + 1);
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    };
    text.lines().enumerate().map(entry).collect()
}

/// Fate of a message, from all its offers and answers.
#[derive(Debug, Default)]
struct Fate<'a> {
    offers: usize,
    refusals: usize,
    first_offer_ns: u64,
    acknowledged_ns: Option<u64>,
    key: Option<&'a str>,
    /// Places in the output.
    written: Vec<usize>,
}

impl Fate<'_> {
    /// Every offer was refused.
    fn is_refused(&self) -> bool {
        self.acknowledged_ns.is_none() && self.offers > 0 && self.offers == self.refusals
    }
}

fn fates(history: &[Entry]) -> BTreeMap<&str, Fate<'_>> {
    let mut fates = BTreeMap::<&str, Fate<'_>>::new();
    let mut place = 0;
    for entry in history {
        match &entry.event {
            Event::Offered { id, key } => {
                let fate = fates.entry(id).or_default();
                if fate.offers == 0 {
                    fate.first_offer_ns = entry.at_ns;
                    fate.key = key.as_deref();
                }
                fate.offers += 1;
            }
            Event::Acknowledged { id } => {
                let fate = fates.entry(id).or_default();
                fate.acknowledged_ns.get_or_insert(entry.at_ns);
            }
            Event::Refused { id } => fates.entry(id).or_default().refusals += 1,
            Event::Written { id } => {
                fates.entry(id).or_default().written.push(place);
                place += 1;
            }
            Event::Torn { .. } | Event::Started | Event::Ready | Event::Fault { .. } => {}
        }
    }
    fates
}

/// Time of each start until it served; `None` for one that never did.
fn starts(history: &[Entry]) -> Vec<(&str, Option<Duration>)> {
    let mut starts = Vec::new();
    let mut open = BTreeMap::<&str, (usize, u64)>::new();
    for entry in history {
        match entry.event {
            Event::Started => {
                open.insert(&entry.who, (starts.len(), entry.at_ns));
                starts.push((&*entry.who, None));
            }
            Event::Ready => {
                if let Some((index, began)) = open.remove(&*entry.who) {
                    starts[index].1 = Some(Duration::from_nanos(entry.at_ns - began));
                }
            }
            _ => {}
        }
    }
    starts
}

/// The counts of a history, by message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Messages that were offered.
    pub offered: usize,
    /// Of these, those that the system acknowledged.
    pub acknowledged: usize,
    /// Of these, those that the system refused every time.
    pub refused: usize,
    /// Of these, those with an unknown outcome.
    pub unknown: usize,
    /// Acknowledged and lost.
    pub lost: usize,
    /// Of unknown outcome, and present.
    pub recovered: usize,
    /// Written more than once.
    pub doubled: usize,
    /// Faults injected by the test.
    pub faults: usize,
    /// The longest wait from a start until it served.
    pub slowest_start: Option<Duration>,
}

impl Account {
    /// Counts the messages of a history.
    pub fn of(history: &[Entry]) -> Self {
        let mut account = Self::default();
        for fate in fates(history).values() {
            let (known, there) = (fate.acknowledged_ns.is_some(), !fate.written.is_empty());
            let unknown = fate.offers > 0 && !known && !fate.is_refused();
            account.offered += usize::from(fate.offers > 0);
            account.acknowledged += usize::from(known);
            account.refused += usize::from(fate.is_refused());
            account.unknown += usize::from(unknown);
            account.lost += usize::from(known && !there);
            account.recovered += usize::from(unknown && there);
            account.doubled += usize::from(fate.written.len() > 1);
        }
        let faults = history
            .iter()
            .filter(|entry| matches!(entry.event, Event::Fault { .. }));
        account.faults = faults.count();
        account.slowest_start = starts(history)
            .into_iter()
            .filter_map(|(_, took)| took)
            .max();
        account
    }
}

impl Display for Account {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} faults, {} offered, {} acknowledged, {} refused, {} unknown of which {} came out; {} lost, {} doubled",
            self.faults,
            self.offered,
            self.acknowledged,
            self.refused,
            self.unknown,
            self.recovered,
            self.lost,
            self.doubled
        )?;
        match self.slowest_start {
            Some(slowest) => write!(formatter, "; ready within {} ms", slowest.as_millis()),
            None => Ok(()),
        }
    }
}
