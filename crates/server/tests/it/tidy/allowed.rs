//! Committed counts that may only shrink, one line for each file and pattern.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{none, root};

/// Occurrences by file and pattern.
pub(super) type Counts = BTreeMap<(String, String), usize>;

fn path(file: &str) -> PathBuf {
    root().join("crates/server/tests/it/tidy").join(file)
}

fn parse(text: &str) -> Counts {
    text.lines()
        .map(|line| {
            let mut columns = line.split('\t');
            let mut column = || columns.next().expect("three columns").to_owned();
            let key = (column(), column());
            (key, column().parse().expect("a count"))
        })
        .collect()
}

fn print(counts: &Counts) -> String {
    counts
        .iter()
        .map(|((file, pattern), count)| format!("{file}\t{pattern}\t{count}\n"))
        .collect()
}

/// The committed counts after an update: never above those in force. The count of a file that was renamed or moved
/// goes to files that are new to the list.
fn lowered(committed: &Counts, found: &Counts, exists: impl Fn(&str) -> bool) -> Counts {
    let mut freed: BTreeMap<&str, usize> = BTreeMap::new();
    for ((file, pattern), count) in committed {
        if !exists(file) {
            *freed.entry(pattern).or_default() += count;
        }
    }
    let mut next = Counts::new();
    for (key, count) in found {
        let (file, pattern) = key;
        let known = committed.keys().any(|(committed, _)| committed == file);
        let limit = if known {
            committed.get(key).copied().unwrap_or(0)
        } else {
            let freed = freed.entry(pattern.as_str()).or_default();
            let taken = (*freed).min(*count);
            *freed -= taken;
            taken
        };
        if limit > 0 {
            next.insert(key.clone(), limit.min(*count));
        }
    }
    next
}

/// Fails for each count that differs from the committed one; `TOWPATH_UPDATE_DOCS=1` lowers these first, and writes a
/// list that does not exist yet.
pub(super) fn check(file: &str, found: &Counts, advice: impl Fn(&str) -> String) {
    let path = path(file);
    let list = std::fs::read_to_string(&path);
    let mut committed = parse(list.as_deref().unwrap_or_default());
    if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
        committed = match list {
            Ok(_) => lowered(&committed, found, |name| root().join(name).exists()),
            Err(_) => found.clone(),
        };
        std::fs::write(&path, print(&committed)).unwrap();
    }
    none(problems(&committed, found, file, advice));
}

fn problems(
    committed: &Counts,
    found: &Counts,
    list: &str,
    advice: impl Fn(&str) -> String,
) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = committed.keys().chain(found.keys()).collect();
    let mut problems = Vec::new();
    for key in keys {
        let (file, pattern) = key;
        let count = |counts: &Counts| counts.get(key).copied().unwrap_or(0);
        let (allowed, now) = (count(committed), count(found));
        if now > allowed {
            problems.push(format!(
                "{file}: {} ({now} found, {allowed} allowed)",
                advice(pattern)
            ));
        } else if now < allowed {
            problems.push(format!(
                "{file}: `{pattern}` found {now} times, {allowed} committed in {list}: lower it with TOWPATH_UPDATE_DOCS=1"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::{Counts, lowered, parse, print, problems};

    fn counts(rows: &[(&str, &str, usize)]) -> Counts {
        rows.iter()
            .map(|(file, pattern, count)| (((*file).into(), (*pattern).into()), *count))
            .collect()
    }

    #[test]
    fn an_update_lowers_and_never_raises() {
        let committed = counts(&[("a.rs", "anew", 3), ("b.rs", "told", 1)]);
        let found = counts(&[
            ("a.rs", "anew", 2),
            ("a.rs", "told", 1),
            ("b.rs", "told", 2),
        ]);
        let next = lowered(&committed, &found, |_| true);
        assert_eq!(next, counts(&[("a.rs", "anew", 2), ("b.rs", "told", 1)]));
        assert_eq!(problems(&next, &found, "list", str::to_owned).len(), 2);
    }

    #[test]
    fn a_renamed_file_keeps_its_count() {
        let committed = counts(&[("old.rs", "anew", 3)]);
        let found = counts(&[("new.rs", "anew", 2), ("other.rs", "anew", 2)]);
        let next = lowered(&committed, &found, |name| name != "old.rs");
        assert_eq!(
            next,
            counts(&[("new.rs", "anew", 2), ("other.rs", "anew", 1)])
        );
    }

    #[test]
    fn more_and_less_than_committed_fail() {
        let committed = counts(&[("a.rs", "anew", 2)]);
        for found in [1, 3] {
            let found = counts(&[("a.rs", "anew", found)]);
            assert_eq!(problems(&committed, &found, "list", str::to_owned).len(), 1);
        }
        assert!(problems(&committed, &committed, "list", str::to_owned).is_empty());
        assert_eq!(parse(&print(&committed)), committed);
    }
}
