//! Words and phrases that `STYLE.md` refuses, each with the words that the field uses.
//!
//! `allowed_words.tsv` holds what is left of them, by file. It only shrinks: more fails, and so does less until
//! `TOWPATH_UPDATE_DOCS=1` has lowered the committed count.

use std::collections::BTreeMap;

use super::allowed::{self, Counts};
use super::prose::{self, Token};
use super::tree;

/// A refused phrase in lower case, and what to write instead. `…` at its end matches no question.
const REFUSED: &[(&str, &str)] = &[
    ("somebody", "a client, a caller, another process"),
    ("anybody", "any client"),
    ("nobody", "no client, no caller"),
    ("whoever", "the client that"),
    ("everybody", "every client"),
    ("anew", "again"),
    ("in hand", "in flight, leased"),
    ("for want of", "because … is missing"),
    ("passed over", "skipped"),
    ("given up", "abandoned, stopped after N attempts"),
    ("taken over", "adopted, claimed"),
    ("taken up", "started, resumed"),
    ("is away", "is unavailable"),
    ("are away", "are unavailable"),
    ("was away", "was unavailable"),
    ("by itself", "automatically, alone"),
    ("by themselves", "automatically, alone"),
    ("of itself", "automatically"),
    ("so many", "N, that many"),
    ("told", "notified, informed"),
    ("not heard of", "not seen"),
    ("heard of", "seen"),
    ("be had", "be reached, be obtained"),
    ("is no", "is not a, has no"),
    ("are no", "are not, have no"),
    ("is none", "is not one, has none"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("went on", "continued"),
    ("mend", "fix"),
    ("handed out", "leased, delivered"),
    ("given back", "released, returned"),
    ("gives back", "releases, returns"),
    ("comes again", "is delivered again, is repeated"),
    ("came again", "was delivered again"),
    ("lets go", "releases"),
    ("goes away", "disconnects, ends"),
    ("mended", "fixed, repaired"),
    ("taken away", "removed"),
    ("what the…", "the noun"),
    ("what a…", "the noun"),
    ("what an…", "the noun"),
    ("what became…", "outcome, status"),
    ("what every…", "the noun"),
    ("what is…", "the noun: messages, contents, state"),
    ("what was…", "the noun: messages, contents, state"),
    ("what are…", "the noun"),
    ("what it…", "the noun"),
    ("what they…", "the noun"),
    ("what comes…", "the noun: later messages, the rest"),
    ("what came…", "the noun"),
    ("what waits…", "waiting messages"),
    ("what has…", "the noun"),
    ("what had…", "the noun"),
    ("who is…", "the client, the caller"),
    ("how long a…", "timeout, duration, interval of"),
    ("how long the…", "timeout, duration, interval of"),
    ("after how long", "delay before, interval after which"),
];

/// Files that quote refused words, or that must not change.
const EXEMPT: &[&str] = &[
    "STYLE.md",
    "crates/server/tests/it/tidy/language.rs",
    "crates/server/tests/it/tidy/names.rs",
];

/// A refused phrase as words.
struct Phrase {
    text: &'static str,
    words: Vec<&'static str>,
    /// A clause in place of a noun: not refused in a question.
    is_clause: bool,
    /// After "there" it is plain English: "there is no lease".
    is_existence: bool,
}

impl Phrase {
    fn new(text: &'static str) -> Self {
        let words = text.trim_end_matches('…');
        Self {
            text,
            words: words.split(' ').collect(),
            is_clause: words != text,
            is_existence: words.ends_with(" no") || words.ends_with(" none"),
        }
    }

    fn is_at(&self, tokens: &[Token], at: usize) -> bool {
        let end = at + self.words.len();
        end <= tokens.len()
            && self
                .words
                .iter()
                .zip(&tokens[at..end])
                .all(|(word, token)| token.is(word))
            && !(self.is_existence && at > 0 && tokens[at - 1].is("there"))
            && !(self.is_clause && is_question(&tokens[end..]))
    }
}

/// Occurrences of each refused phrase in a text.
fn count(tokens: &[Token], phrases: &[Phrase]) -> BTreeMap<&'static str, usize> {
    let mut by_first: BTreeMap<&str, Vec<&Phrase>> = BTreeMap::new();
    for phrase in phrases {
        by_first.entry(phrase.words[0]).or_default().push(phrase);
    }
    let mut counts = BTreeMap::new();
    for (at, token) in tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        for phrase in by_first.get(prose::stem(word)).into_iter().flatten() {
            if phrase.is_at(tokens, at) {
                *counts.entry(phrase.text).or_default() += 1;
            }
        }
    }
    counts
}

fn is_question(tokens: &[Token]) -> bool {
    tokens
        .iter()
        .find(|token| matches!(token, Token::Mark(_)))
        .is_some_and(|mark| *mark == Token::Mark('?'))
}

/// Refused phrases by file and phrase, occurrences by phrase, and the words of all prose.
fn counted() -> (Counts, BTreeMap<&'static str, usize>, usize) {
    let phrases: Vec<Phrase> = REFUSED.iter().map(|(text, _)| Phrase::new(text)).collect();
    let (mut counts, mut words) = (Counts::new(), 0);
    let mut sums: BTreeMap<_, _> = REFUSED.iter().map(|(text, _)| (*text, 0)).collect();
    for (name, text) in tree() {
        if EXEMPT.contains(&name.as_str()) {
            continue;
        }
        let Some(tokens) = prose::of(&name, &text) else {
            continue;
        };
        words += tokens
            .iter()
            .filter(|token| matches!(token, Token::Word(_)))
            .count();
        for (phrase, found) in count(&tokens, &phrases) {
            *sums.entry(phrase).or_default() += found;
            counts.insert((name.clone(), phrase.to_owned()), found);
        }
    }
    (counts, sums, words)
}

/// `cargo test --test it tidy::language::refused_phrases -- --nocapture` prints the rates.
#[test]
fn refused_phrases_only_become_fewer() {
    let (counts, sums, words) = counted();
    let all: usize = sums.values().sum();
    eprintln!("{words} words of prose, {all} refused phrases");
    for (phrase, found) in sums {
        eprintln!(
            "{:>8.2} per 10,000 words  {found:>5}  {phrase}",
            rate(found, words)
        );
    }
    allowed::check("allowed_words.tsv", &counts, |phrase| {
        let better = REFUSED
            .iter()
            .find(|(refused, _)| *refused == phrase)
            .map_or("", |(_, better)| better);
        format!("instead of `{phrase}` write: {better}")
    });
}

/// Occurrences in ten thousand words.
fn rate(found: usize, words: usize) -> f64 {
    let in_words =
        |count: usize| f64::from(u32::try_from(count).expect("a tree fits into 32 bits"));
    in_words(found) * 10_000.0 / in_words(words.max(1))
}

#[test]
fn a_phrase_is_counted_across_lines_and_not_across_sentences() {
    for (text, phrase, expected) in [
        ("Messages in\nhand, in hand.", "in hand", 2),
        ("Put it in. Hand it out.", "in hand", 0),
        ("There is no lease; this is no lease", "is no", 1),
        ("What is wrong? See what is wrong.", "what is…", 1),
        ("the field `in` hand", "in hand", 0),
        ("Somebody's turn", "somebody", 1),
    ] {
        let tokens = prose::of("a.md", text).unwrap();
        let found = count(&tokens, &[Phrase::new(phrase)]);
        assert_eq!(found.get(phrase).copied().unwrap_or(0), expected, "{text}");
    }
}
