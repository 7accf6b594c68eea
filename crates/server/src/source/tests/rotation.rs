//! Files are renamed, copied and removed.

use super::*;

#[test]
fn a_renamed_file_is_followed_while_its_writer_has_it_open() {
    for restart in [false, true] {
        let mut world = World::new();
        world.append("in", "A\n");
        assert_eq!(world.all(), ["A"]);
        world.rename("in", "in.1");
        world.append("in", "");
        assert!(world.all().is_empty());
        if restart {
            world.restart();
        }
        // By the program, which was not signalled yet.
        world.append("in.1", "B\n");
        assert_eq!(world.all(), ["B"], "restart: {restart}");
        world.append("in", "C\n");
        assert_eq!(world.all(), ["C"], "restart: {restart}");
        world.append("in.1", "D\n");
        world.append("in", "E\n");
        assert_eq!(world.all(), ["D", "E"], "restart: {restart}");
    }
}

#[test]
fn a_renamed_file_is_finished_before_the_new_one() {
    for restart in [false, true] {
        let mut world = World::new();
        world.append("in", "a\nb");
        assert_eq!(world.all(), ["a"]);
        world.rename("in", "in.1");
        assert!(world.all().is_empty(), "its successor is not there yet");
        world.append("in.1", "\nc\n");
        world.append("in", "x\ny\n");
        if restart {
            world.restart();
        }
        assert_eq!(world.all(), ["b", "c", "x", "y"], "restart: {restart}");
    }
}

#[test]
fn a_renamed_file_is_closed_once_it_was_quiet() {
    let mut world = World::new();
    world.append("in", "a\nb");
    assert_eq!(world.all(), ["a"]);
    world.rename("in", "in.1");
    world.append("in", "c\n");
    assert_eq!(world.all(), ["c"], "`b` may still get its end");
    assert_eq!(world.open(), 2);
    world.restart();
    world.rotate_wait = Duration::ZERO;
    assert_eq!(world.all(), ["b"]);
    assert_eq!(world.open(), 1);
    assert_eq!(world.expire().len(), 1);
    // And is not opened again by a restart before its position is forgotten.
    world.restart();
    assert!(world.all().is_empty());
    assert_eq!((world.open(), world.saved.len()), (1, 1));
}

#[test]
fn like_names_are_not_successors() {
    let neighbours = [
        "app-audit.log",
        "application.log",
        "app.log.gz",
        "app.log.1.gz",
        "app.log~",
        "app.log.bak",
        "app.log.journal",
        "app-2.log",
    ];
    let mut world = World::of(&["app.log"]);
    world.append("app.log", "app 1\n");
    assert_eq!(world.all(), ["app 1"]);
    for restart in [false, true] {
        std::thread::sleep(Duration::from_millis(20));
        for name in neighbours {
            let path = world.path(name);
            fs::remove_file(&path).ok();
            fs::write(path, "OTHER\n").unwrap();
        }
        world.rename("app.log", "app.log.1");
        world.append("app.log", "app 2\n");
        if restart {
            world.restart();
        }
        assert_eq!(world.all(), ["app 2"], "restart: {restart}");
    }
}

#[test]
fn files_that_came_and_went_meanwhile_are_read_in_order() {
    for names in [
        ["in.3", "in.2", "in.1"],
        ["in-20261128", "in-20261129", "in-20261130"],
        ["in.2026-11-28", "in.2026-11-29", "in.2026-11-30"],
    ] {
        let mut world = World::new();
        world.append("in", "a\n");
        assert_eq!(world.all(), ["a"]);
        for (name, text) in names.iter().zip(["b\n", "c\n", "d\n"]) {
            world.rename("in", name);
            world.append("in", text);
        }
        world.restart();
        assert_eq!(world.all(), ["b", "c", "d"]);
    }
}

#[test]
fn a_read_that_fails_between_two_files_loses_none() {
    for is_restarted in [false, true] {
        let mut world = World::new();
        world.append("in", "a\n");
        assert_eq!(world.all(), ["a"]);
        world.rename("in", "in.1");
        world.append("in", "b\n");
        world.rename("in", "in.2");
        if is_restarted {
            world.restart();
        }
        fs::create_dir(world.path("in")).unwrap();
        assert!(world.all().is_empty());
        assert_eq!(world.tail().problems().count(), 1);
        fs::remove_dir(world.path("in")).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        world.append("in", "c\n");
        assert_eq!(world.all(), ["b", "c"], "restarted: {is_restarted}");
        assert_eq!(world.tail().problems().count(), 0);
    }
}

#[test]
fn a_renamed_file_is_found_by_its_inode_whatever_its_name() {
    let mut world = World::new();
    world.append("in", "a\n");
    assert_eq!(world.all(), ["a"]);
    world.append("in", "b\n");
    world.rename("in", "kept-by-hand");
    world.append("in", "c\n");
    world.restart();
    assert_eq!(world.all(), ["b", "c"]);
}

#[test]
fn the_copy_of_a_truncated_file_is_read_first() {
    for restart in [false, true] {
        let mut world = World::new();
        world.append("in", "a\nb\n");
        assert_eq!(world.all(), ["a", "b"]);
        // Not read yet when the rotation comes.
        world.append("in", "c\n");
        std::thread::sleep(Duration::from_millis(20));
        fs::copy(world.path("in"), world.path("in.1")).unwrap();
        fs::write(world.path("in"), "d\ne\nf\ng\nh\n").unwrap();
        if restart {
            world.restart();
        }
        assert_eq!(world.all(), ["c", "d", "e", "f", "g", "h"]);
        world.rename("in.1", "in.2");
        fs::copy(world.path("in"), world.path("in.1")).unwrap();
        fs::write(world.path("in"), "i\n").unwrap();
        world.restart();
        assert_eq!(world.all(), ["i"], "restart: {restart}");
    }
}

#[test]
fn a_pattern_does_not_read_copies_again() {
    let mut world = World::of(&["*"]);
    world.append("in.log", "a\nb\n");
    assert_eq!(world.all(), ["a", "b"]);
    // As a rotation copies and truncates.
    fs::copy(world.path("in.log"), world.path("in.log.1")).unwrap();
    assert!(world.all().is_empty(), "copied and not truncated yet");
    world.append("in.log", "c\n");
    assert_eq!(world.all(), ["c"]);
    fs::write(world.path("in.log"), "d\n").unwrap();
    assert_eq!(world.all(), ["d"]);
    world.restart();
    assert!(world.all().is_empty());
}

#[test]
fn a_pattern_knows_a_renamed_file() {
    for restart in [false, true] {
        let mut world = World::of(&["*.log"]);
        world.append("test.log", "one\ntwo\n");
        assert_eq!(world.all(), ["one", "two"]);
        world.rename("test.log", "test.20260707.log");
        world.append("test.log", "three\n");
        world.rename("test.20260707.log", "some other name.log");
        if restart {
            world.restart();
        }
        assert_eq!(world.all(), ["three"], "restart: {restart}");
        world.append("some other name.log", "four\n");
        assert_eq!(world.all(), ["four"], "restart: {restart}");
    }
}

#[test]
fn files_that_are_gone_are_closed_and_forgotten() {
    let mut world = World::of(&["day-*.log"]);
    world.rotate_wait = Duration::ZERO;
    for round in 0..3 {
        let names: Vec<String> = (0..300).map(|day| format!("day-{day}.log")).collect();
        for name in &names {
            world.append(name, "a\n");
        }
        assert_eq!(world.all().len(), 300, "round {round}");
        assert_eq!((world.open(), world.saved.len()), (300, 300));
        for name in &names {
            world.append(name, "b\n");
            fs::remove_file(world.path(name)).unwrap();
        }
        assert_eq!(world.all().len(), 300, "round {round}");
        assert_eq!(world.open(), 0);
        assert_eq!(world.tail().progress().count(), 0);
        assert_eq!(world.expire().len(), 300);
        assert!(world.saved.is_empty());
    }
}

#[test]
fn a_file_that_went_between_two_runs_is_forgotten_when_another_is_there() {
    let mut world = World::new();
    world.append("in", "a\n");
    assert_eq!(world.all(), ["a"]);
    world.restart();
    fs::rename(world.path("in"), world.path("elsewhere")).unwrap();
    world.append("in", "b\n");
    fs::remove_file(world.path("elsewhere")).unwrap();
    assert_eq!(world.all(), ["b"]);
    assert_eq!(world.expire().len(), 1);
    assert_eq!(world.saved.len(), 1);
}
