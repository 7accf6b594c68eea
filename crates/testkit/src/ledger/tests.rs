//! The checker on constructed histories: each breaks exactly one invariant.

use std::collections::BTreeSet;

use super::*;

/// A valid run with a power cut, and an offer without an answer.
const GOOD: &str = r#"{"at_ns":0,"who":"up","op":"started"}
{"at_ns":100,"who":"up","op":"ready"}
{"at_ns":200,"who":"p1","op":"offered","id":"a","key":"k"}
{"at_ns":300,"who":"p1","op":"acknowledged","id":"a"}
{"at_ns":310,"who":"p1","op":"offered","id":"b","key":"k"}
{"at_ns":320,"who":"p2","op":"offered","id":"c"}
{"at_ns":330,"who":"p2","op":"refused","id":"c"}
{"at_ns":340,"who":"p2","op":"offered","id":"d"}
{"at_ns":350,"who":"disk","op":"fault","what":"power cut"}
{"at_ns":400,"who":"up","op":"started"}
{"at_ns":900,"who":"up","op":"ready"}
{"at_ns":910,"who":"p2","op":"offered","id":"c"}
{"at_ns":920,"who":"p2","op":"acknowledged","id":"c"}
{"at_ns":990,"who":"out","op":"written","id":"a"}
{"at_ns":991,"who":"out","op":"written","id":"c"}
{"at_ns":992,"who":"out","op":"written","id":"b"}
"#;

/// Entries added to the valid run, and the one invariant that they break.
const BAD: &[(&str, &str)] = &[
    (
        "acknowledged_is_present",
        r#"{"at_ns":1000,"who":"p1","op":"offered","id":"e"}
{"at_ns":1001,"who":"p1","op":"acknowledged","id":"e"}"#,
    ),
    (
        "refused_is_absent",
        r#"{"at_ns":1000,"who":"p1","op":"offered","id":"e"}
{"at_ns":1001,"who":"p1","op":"refused","id":"e"}
{"at_ns":1002,"who":"out","op":"written","id":"e"}"#,
    ),
    (
        "nothing_invented",
        r#"{"at_ns":1000,"who":"out","op":"written","id":"z"}"#,
    ),
    (
        "nothing_twice",
        r#"{"at_ns":1000,"who":"out","op":"written","id":"b"}"#,
    ),
    (
        "order_per_key",
        r#"{"at_ns":1000,"who":"p1","op":"offered","id":"e","key":"k"}
{"at_ns":1001,"who":"p1","op":"acknowledged","id":"e"}
{"at_ns":1002,"who":"p1","op":"offered","id":"f","key":"k"}
{"at_ns":1003,"who":"p1","op":"acknowledged","id":"f"}
{"at_ns":1004,"who":"out","op":"written","id":"f"}
{"at_ns":1005,"who":"out","op":"written","id":"e"}"#,
    ),
    (
        "no_torn_line",
        r#"{"at_ns":1000,"who":"out","op":"torn","text":"2026-11"}"#,
    ),
    (
        "answers_have_offers",
        r#"{"at_ns":1000,"who":"p1","op":"refused","id":"e"}"#,
    ),
    (
        "serves_soon_after_a_start",
        r#"{"at_ns":1000,"who":"up","op":"started"}
{"at_ns":5000001001,"who":"up","op":"ready"}"#,
    ),
    (
        "serves_soon_after_a_start",
        r#"{"at_ns":1000,"who":"up","op":"started"}"#,
    ),
];

#[test]
fn each_invariant_is_broken_by_a_history_of_its_own() {
    for (name, added) in BAD {
        let history = parse(&format!("{GOOD}{added}")).unwrap();
        let found: Vec<_> = violations(&history)
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(found, [*name], "{added}");
    }
    let broken: BTreeSet<_> = BAD.iter().map(|(name, _)| *name).collect();
    let all: BTreeSet<_> = INVARIANTS.iter().map(|one| one.name).collect();
    assert_eq!(broken, all, "an invariant that was never seen to be broken");
}

#[test]
fn a_good_history_breaks_nothing_and_is_counted() {
    let history = parse(GOOD).unwrap();
    assert_eq!(violations(&history), []);
    let expected = Account {
        offered: 4,
        acknowledged: 2,
        unknown: 2,
        recovered: 1,
        faults: 1,
        slowest_start: Some(Duration::from_nanos(500)),
        ..Account::default()
    };
    assert_eq!(Account::of(&history), expected);
}

#[test]
fn messages_that_were_offered_side_by_side_may_come_out_in_any_order() {
    let history = parse(
        r#"{"at_ns":1,"who":"p1","op":"offered","id":"a","key":"k"}
{"at_ns":2,"who":"p2","op":"offered","id":"b","key":"k"}
{"at_ns":3,"who":"p1","op":"acknowledged","id":"a"}
{"at_ns":4,"who":"p2","op":"acknowledged","id":"b"}
{"at_ns":5,"who":"out","op":"written","id":"b"}
{"at_ns":6,"who":"out","op":"written","id":"a"}"#,
    )
    .unwrap();
    assert_eq!(violations(&history), []);
}

#[test]
fn a_recorded_history_is_read_back_and_an_invalid_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let ledger = Ledger::begin(&path).unwrap();
    ledger.offered("p1", "a\n\"b\"", None);
    ledger.acknowledged("p1", "a\n\"b\"");
    let report = ledger.settle().unwrap_err();
    assert!(report.contains("acknowledged_is_present"), "{report}");
    assert!(report.contains(&*path.to_string_lossy()), "{report}");
    ledger.written("out", "a\n\"b\"");
    assert_eq!(ledger.settle().unwrap().acknowledged, 1);
    assert!(!path.exists());
}

#[test]
fn an_invalid_line_is_reported_with_its_number() {
    let error = parse(&format!("{GOOD}nonsense")).unwrap_err().to_string();
    assert!(error.contains("line 17 "), "{error}");
}
