//! Bytes become lines.

use super::*;

#[test]
fn lines_come_once_and_in_order_across_restarts() {
    let mut world = World::new();
    assert!(world.all().is_empty(), "there is no file yet");
    assert_eq!(world.tail().missing().count(), 1);
    world.append("in", "a\n\nb\r\nc");
    assert_eq!(world.all(), ["a", "", "b\r"]);
    assert_eq!(world.tail().missing().count(), 0);
    world.restart();
    assert!(world.all().is_empty(), "`c` has no newline");
    world.append("in", "c\nd\ne\nf\ng\n");
    assert_eq!(world.all(), ["cc", "d", "e", "f", "g"]);
}

#[test]
fn rejected_lines_are_read_again() {
    let mut world = World::new();
    world.append("in", "a\n");
    world.tail().look(false);
    let first = world.tail().read(16);
    assert_eq!(first.len(), 1);
    assert_eq!(world.tail().read(16), first);
}

#[test]
fn a_line_over_the_limit_is_cut_and_the_next_one_is_whole() {
    let mut world = World::new();
    world.append(
        "in",
        format!("a\n{}\nb\n{}", "x".repeat(100), "y".repeat(50)),
    );
    assert_eq!(
        world.all(),
        ["a", &format!("{}… of 100", "x".repeat(16)), "b"]
    );
    assert!(world.all().is_empty(), "its end is not there yet");
    world.append("in", "y\nc\n");
    assert_eq!(world.all(), [&format!("{}… of 51", "y".repeat(16)), "c"]);
}

#[test]
fn a_last_line_counts_after_a_quiet_time() {
    let mut world = World::new();
    world.append("in", "a");
    assert!(world.all().is_empty());
    world.restart();
    world.limits.quiet = Some(Duration::ZERO);
    assert_eq!(world.all(), ["a"]);
    world.append("in", "b\n");
    assert_eq!(world.all(), ["b"], "later text is a line of its own");
}

#[test]
fn text_behind_a_sparse_gap_is_read() {
    for gap in [100, 5_000, 1 << 20, 3 << 20] {
        let mut world = World::new();
        let file = fs::File::create(world.path("in")).unwrap();
        let write = |text: &str, at: u64| {
            std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), at).unwrap();
        };
        write("one\n", 0);
        assert_eq!(world.all(), ["one"]);
        // Truncated by a rotation, and its writer continues at its old offset.
        file.set_len(0).unwrap();
        write("two\nthree\n", gap);
        assert_eq!(world.all(), ["two", "three"], "gap {gap}");
        world.restart();
        write("four\n", gap + 10);
        assert_eq!(world.all(), ["four"], "gap {gap}");
        // A gap within the file.
        write("five\n", gap + (1 << 20));
        assert_eq!(world.all(), ["five"], "gap {gap}");
    }
}

#[test]
fn a_gap_without_text_behind_it_is_waited_for() {
    let mut world = World::new();
    let file = fs::File::create(world.path("in")).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(world.all().is_empty());
    world.append("in", "text\n");
    assert_eq!(world.all(), ["text"]);
}

#[test]
fn few_nul_bytes_are_text() {
    let mut world = World::new();
    world.append("in", b"\0\0a\nb\n\0\0\0\0c\n");
    assert_eq!(world.all(), ["\0\0a", "b", "\0\0\0\0c"]);
}
