//! Records of failed attempts, and how they travel with their message.
//!
//! Backends keep the error of an attempt as a text, so a record is one too: the error, the facts, and the beginning of the
//! answer, with a separator between them. A text without separators is an error without facts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ConsumerId, Timestamp};

/// Most attempts kept of a message, the last ones.
pub const KEPT: usize = 10;

/// Longest error that is kept, in bytes.
pub const ERROR_BYTES: usize = 1_024;

/// Longest beginning of an answer that is kept, in bytes.
pub const ANSWER_BYTES: usize = 2_048;

/// Longest text of a record: error, facts and answer.
pub const RECORD_BYTES: usize = ERROR_BYTES + 512 + ANSWER_BYTES;

/// Most bytes of answers that the earlier attempts of a message keep together; the oldest answers go first.
pub const EARLIER_ANSWERS_BYTES: usize = ANSWER_BYTES;

/// Between the parts of a record (ASCII "record separator").
const PART: char = '\u{1e}';

/// Between the facts (ASCII "unit separator").
const FACT: char = '\u{1f}';

/// A failed attempt to deliver a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended, by the clock of the consumer's process.
    pub ended_at: Timestamp,
    /// Duration of the sink's call.
    pub took: Duration,
    /// The consumer that had the delivery.
    pub consumer: ConsumerId,
    /// Why it failed.
    pub error: String,
    /// Beginning of the receiver's answer.
    pub answer: Option<String>,
}

impl Attempt {
    /// As it is handed to a queue in place of the error alone; never longer than [`RECORD_BYTES`].
    pub fn to_text(&self) -> String {
        let error = cut(&self.error, ERROR_BYTES);
        let mut text: String = error
            .chars()
            .map(|one| match one {
                PART => ' ',
                other => other,
            })
            .collect();
        let (ended, took) = (self.ended_at.as_millis(), self.took.as_millis());
        let consumer = &self.consumer;
        text.push_str(&format!("{PART}{ended}{FACT}{took}{FACT}{consumer}"));
        if let Some(answer) = &self.answer {
            text.push(PART);
            text.push_str(cut(answer, ANSWER_BYTES));
        }
        text
    }

    /// Reads a text; `None` when it is an error without facts.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, PART);
        let (error, facts, answer) = (parts.next()?, parts.next()?, parts.next());
        let mut facts = facts.splitn(3, FACT);
        Some(Self {
            ended_at: Timestamp::from_millis(facts.next()?.parse().ok()?),
            took: Duration::from_millis(facts.next()?.parse().ok()?),
            consumer: ConsumerId::new(facts.next()?).ok()?,
            error: error.to_owned(),
            answer: answer.map(str::to_owned),
        })
    }
}

/// The error of a record, or the whole of a text without facts.
pub fn error_of(text: &str) -> &str {
    text.split(PART).next().unwrap_or_default()
}

/// Cuts a text to the length that a backend keeps.
pub fn bounded(text: &str) -> &str {
    match text.contains(PART) {
        true => cut(text, RECORD_BYTES),
        false => cut(text, ERROR_BYTES),
    }
}

/// Adds the text of a failed attempt to those of the earlier ones, oldest first, within the bounds.
pub fn remember(earlier: &mut Vec<String>, text: &str) {
    earlier.push(bounded(text).to_owned());
    let over = earlier.len().saturating_sub(KEPT);
    earlier.drain(..over);
    let mut room = EARLIER_ANSWERS_BYTES;
    for text in earlier.iter_mut().rev() {
        let Some(answer) = text.match_indices(PART).nth(1).map(|(at, _)| at) else {
            continue;
        };
        match room.checked_sub(text.len() - answer - PART.len_utf8()) {
            Some(rest) => room = rest,
            None => {
                room = 0;
                text.truncate(answer);
            }
        }
    }
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(error: &str, answer: Option<&str>) -> Attempt {
        Attempt {
            ended_at: Timestamp::from_millis(1_790_000_000_123),
            took: Duration::from_millis(42),
            consumer: ConsumerId::new("ingest.worker-1").unwrap(),
            error: error.to_owned(),
            answer: answer.map(str::to_owned),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for answer in [None, Some(""), Some("{\"error\":\"no\"}\n\u{1e}rest")] {
            let written = attempt("answered 500", answer);
            let text = written.to_text();
            assert_eq!(Attempt::read(&text), Some(written));
            assert_eq!(error_of(&text), "answered 500");
        }
        let separated = attempt("a\u{1e}b", None).to_text();
        assert_eq!(Attempt::read(&separated).unwrap().error, "a b");
    }

    #[test]
    fn a_plain_error_has_no_facts() {
        for text in ["", "timed out", "odd\u{1e}text", "odd\u{1e}1\u{1f}2"] {
            assert_eq!(Attempt::read(text), None, "{text:?}");
        }
        assert_eq!(error_of("timed out"), "timed out");
    }

    #[test]
    fn records_are_bounded_and_the_oldest_answers_go_first() {
        let long = "\u{e9}".repeat(4_000);
        let text = attempt(&long, Some(&long)).to_text();
        assert!(text.len() <= RECORD_BYTES, "{}", text.len());
        assert_eq!(bounded(&text), text);
        let mut earlier = Vec::new();
        for number in 0..12 {
            let answer = "x".repeat(900);
            remember(
                &mut earlier,
                &attempt(&number.to_string(), Some(&answer)).to_text(),
            );
        }
        let kept: Vec<Attempt> = earlier
            .iter()
            .map(|text| Attempt::read(text).unwrap())
            .collect();
        let errors: Vec<&str> = kept.iter().map(|one| one.error.as_str()).collect();
        assert_eq!(errors, ["2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
        let answers: Vec<bool> = kept.iter().map(|one| one.answer.is_some()).collect();
        assert_eq!(answers, [[false; 8].as_slice(), &[true; 2]].concat());
    }
}
