//! What becomes of lines when files come, go, shrink and change their names.

use std::io::Write;

use super::*;

const LIMITS: Limits = Limits {
    line: 16,
    lines: 3,
    bytes: 32,
    quiet: None,
};

struct Input {
    folder: tempfile::TempDir,
    tail: Tail,
}

impl Input {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tail = Tail::new(folder.path().join("in"), LIMITS, None);
        Self { folder, tail }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("in")
    }

    fn append(&self, text: &str) {
        let mut options = fs::OpenOptions::new();
        let mut file = options.create(true).append(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Everything there is, as the next process would see it after each chunk.
    fn all(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(chunk) = self.tail.read().unwrap() {
            found.extend(chunk.lines.into_iter().map(|line| match line {
                Line::Whole(bytes) => String::from_utf8(bytes).unwrap(),
                Line::TooLong(start, length) => {
                    format!("{}… of {length}", String::from_utf8(start).unwrap())
                }
            }));
            self.tail.accept(chunk.position);
        }
        found
    }

    /// As after a restart.
    fn restart(&mut self) {
        let saved = self.tail.open.as_ref().map(|(_, at)| at.clone());
        self.tail = Tail::new(self.path(), LIMITS, saved);
    }
}

#[test]
fn lines_come_once_and_in_order_across_restarts() {
    let mut input = Input::new();
    assert!(input.all().is_empty(), "there is no file yet");
    input.append("a\n\nb\r\nc");
    assert_eq!(input.all(), ["a", "", "b\r"]);
    input.restart();
    assert!(input.all().is_empty(), "`c` has no newline");
    input.append("c\nd\ne\nf\ng\n");
    assert_eq!(input.all(), ["cc", "d", "e", "f", "g"]);
}

#[test]
fn what_is_not_accepted_comes_again() {
    let mut input = Input::new();
    input.append("a\n");
    let first = input.tail.read().unwrap().unwrap();
    assert_eq!(input.tail.read().unwrap(), Some(first));
}

#[test]
fn a_renamed_file_is_finished_before_the_new_one() {
    for restart in [false, true] {
        let mut input = Input::new();
        input.append("a\nb");
        assert_eq!(input.all(), ["a"]);
        let old = input.folder.path().join("in.1");
        fs::rename(input.path(), &old).unwrap();
        assert!(input.all().is_empty(), "its successor is not there yet");
        fs::write(&old, "a\nb\nc").unwrap();
        input.append("x\ny\n");
        if restart {
            input.restart();
        }
        assert_eq!(input.all(), ["b", "c", "x", "y"], "restart: {restart}");
    }
}

#[test]
fn files_that_came_and_went_meanwhile_are_not_passed_over() {
    let mut input = Input::new();
    input.append("a\n");
    assert_eq!(input.all(), ["a"]);
    for (number, text) in [(1, "b\n"), (2, "c\n"), (3, "d\n")] {
        let old = input.folder.path().join(format!("in.{number}"));
        fs::rename(input.path(), old).unwrap();
        // File systems know when a file was made to a few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        input.append(text);
    }
    input.restart();
    assert_eq!(input.all(), ["b", "c", "d"]);
}

#[test]
fn a_read_that_fails_between_two_files_passes_none_over() {
    for is_restarted in [false, true] {
        let mut input = Input::new();
        input.append("a\n");
        assert_eq!(input.all(), ["a"]);
        let old = |name: &str| input.folder.path().join(name);
        let (first, second) = (old("in.1"), old("in.2"));
        fs::rename(input.path(), first).unwrap();
        // File systems know when a file was made to a few milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        input.append("b\n");
        fs::rename(input.path(), second).unwrap();
        if is_restarted {
            input.restart();
        }
        // What is there is no file: the next one cannot be looked for, as when a rename comes in between.
        fs::create_dir(input.path()).unwrap();
        assert!(input.tail.read().is_err());
        fs::remove_dir(input.path()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        input.append("c\n");
        assert_eq!(input.all(), ["b", "c"], "restarted: {is_restarted}");
    }
}

#[test]
fn a_truncated_file_is_read_from_its_beginning() {
    let mut input = Input::new();
    input.append("a\nb\n");
    assert_eq!(input.all(), ["a", "b"]);
    fs::write(input.path(), "c\n").unwrap();
    assert_eq!(input.all(), ["c"]);
    // Longer than before by the time it is looked at.
    fs::write(input.path(), "d\ne\nf\n").unwrap();
    assert_eq!(input.all(), ["d", "e", "f"]);
    input.restart();
    fs::write(input.path(), "g\n").unwrap();
    assert_eq!(input.all(), ["g"]);
}

#[test]
fn a_file_that_was_truncated_and_renamed_meanwhile_is_not_passed_over() {
    let mut input = Input::new();
    input.append("a\nb\n");
    assert_eq!(input.all(), ["a", "b"]);
    input.restart();
    fs::write(input.path(), "c\n").unwrap();
    fs::rename(input.path(), input.folder.path().join("in.1")).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    input.append("d\n");
    assert_eq!(input.all(), ["c", "d"]);
}

#[test]
fn another_file_after_a_restart_is_read_from_its_beginning() {
    let mut input = Input::new();
    input.append("a\nb\n");
    assert_eq!(input.all(), ["a", "b"]);
    input.restart();
    fs::remove_file(input.path()).unwrap();
    assert!(input.all().is_empty());
    input.append("x\ny\nz\n");
    assert_eq!(input.all(), ["x", "y", "z"]);
}

#[test]
fn a_line_over_the_limit_is_cut_and_the_next_one_is_whole() {
    let mut input = Input::new();
    input.append(&format!("a\n{}\nb\n{}", "x".repeat(100), "y".repeat(50)));
    assert_eq!(
        input.all(),
        ["a", &format!("{}… of 100", "x".repeat(16)), "b"]
    );
    assert!(input.all().is_empty(), "its end is not there yet");
    input.append("y\nc\n");
    assert_eq!(input.all(), [&format!("{}… of 51", "y".repeat(16)), "c"]);
}

#[test]
fn a_last_line_counts_after_a_quiet_time() {
    let mut input = Input::new();
    input.append("a");
    assert!(input.all().is_empty());
    input.tail.limits.quiet = Some(Duration::ZERO);
    assert_eq!(input.all(), ["a"]);
    input.append("b\n");
    assert_eq!(
        input.all(),
        ["b"],
        "what is added later is a line of its own"
    );
}

#[test]
fn the_end_is_behind_the_last_newline() {
    let input = Input::new();
    assert_eq!(Tail::end(&input.path()).unwrap(), None);
    input.append("a\nb\nc");
    assert_eq!(Tail::end(&input.path()).unwrap().unwrap().offset, 4);
}
