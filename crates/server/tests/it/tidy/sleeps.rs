//! A test waits for a condition with a deadline; one that sleeps has the reason in a comment above.
//!
//! `allowed_sleeps.tsv` has the sleeps without a reason, by file. It only shrinks.

use super::allowed::{self, Counts};
use super::files;

/// Whether all of a file is code of tests.
fn is_of_tests(name: &str) -> bool {
    name.contains("/tests/")
        || name.contains("/testkit/")
        || name.ends_with("_test.rs")
        || name.ends_with("/tests.rs")
}

/// Sleeps in the code of tests without a comment in the three lines above.
fn unexplained(name: &str, text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let begin = match is_of_tests(name) {
        true => Some(0),
        false => lines.iter().position(|line| line.trim() == "#[cfg(test)]"),
    };
    let Some(begin) = begin else { return 0 };
    (begin..lines.len())
        .filter(|at| lines[*at].contains("thread::sleep(") || lines[*at].contains("time::sleep("))
        .filter(|at| {
            let above = &lines[at.saturating_sub(3)..*at];
            !above.iter().any(|line| line.trim_start().starts_with("//"))
        })
        .count()
}

#[test]
fn sleeps_without_a_reason_only_become_fewer() {
    let counts: Counts = files("crates", "rs")
        .into_iter()
        .filter(|(name, _)| !name.ends_with("tidy/sleeps.rs"))
        .map(|(name, text)| {
            let found = unexplained(&name, &text);
            ((name, "sleep".to_owned()), found)
        })
        .filter(|(_, found)| *found > 0)
        .collect();
    eprintln!("{} sleeps without a reason", counts.values().sum::<usize>());
    allowed::check("allowed_sleeps.tsv", &counts, |_| {
        "wait for a condition with a deadline, or write the reason above the `sleep`".to_owned()
    });
}

#[test]
fn a_sleep_is_explained_by_a_comment_above() {
    let name = "crates/a/tests/a.rs";
    assert_eq!(unexplained(name, "thread::sleep(SHORT);"), 1);
    assert_eq!(
        unexplained(name, "// Longer than a lease.\nthread::sleep(SHORT);"),
        0
    );
    let inline = "tokio::time::sleep(PAUSE)\n#[cfg(test)]\nmod tests { tokio::time::sleep(PAUSE) }";
    assert_eq!(unexplained("crates/a/src/a.rs", inline), 1);
}
