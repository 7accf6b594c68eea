//! Which file is which.

#![expect(
    clippy::disallowed_methods,
    reason = "compared with times of the file system"
)]

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_truncated_file_is_read_from_its_beginning() {
    let mut world = World::new();
    world.append("in", "a\nb\n");
    assert_eq!(world.all(), ["a", "b"]);
    fs::write(world.path("in"), "c\n").unwrap();
    assert_eq!(world.all(), ["c"]);
    // Longer than before by the time it is looked at.
    fs::write(world.path("in"), "d\ne\nf\n").unwrap();
    assert_eq!(world.all(), ["d", "e", "f"]);
    world.restart();
    fs::write(world.path("in"), "g\n").unwrap();
    assert_eq!(world.all(), ["g"]);
}

#[test]
fn a_file_that_was_truncated_and_renamed_meanwhile_is_read() {
    let mut world = World::new();
    world.append("in", "a\nb\n");
    assert_eq!(world.all(), ["a", "b"]);
    world.restart();
    fs::write(world.path("in"), "c\n").unwrap();
    world.rename("in", "in.1");
    world.append("in", "d\n");
    assert_eq!(world.all(), ["c", "d"]);
}

#[test]
fn a_file_with_the_same_head_is_another_one() {
    let head = format!("#Fields: {:0250}\n", 0);
    for is_overwritten in [false, true] {
        for restart in [false, true] {
            let mut world = World::new();
            world.limits = Limits {
                line: 1_000,
                lines: 100,
                bytes: 10_000,
                quiet: None,
            };
            world.append("in", format!("{head}day1 a\nday1 b\n"));
            assert_eq!(world.all().len(), 3);
            if restart {
                world.restart();
            }
            if !is_overwritten {
                fs::remove_file(world.path("in")).unwrap();
            }
            let second = format!("{head}day2 first\nday2 second\nday2 third\n");
            fs::write(world.path("in"), second).unwrap();
            let expected = [head.trim(), "day2 first", "day2 second", "day2 third"];
            assert_eq!(world.all(), expected, "{is_overwritten} {restart}");
        }
    }
}

#[test]
fn another_file_after_a_restart_is_read_from_its_beginning() {
    let mut world = World::new();
    world.append("in", "a\nb\n");
    assert_eq!(world.all(), ["a", "b"]);
    world.restart();
    fs::remove_file(world.path("in")).unwrap();
    assert!(world.all().is_empty());
    world.append("in", "x\ny\nz\n");
    assert_eq!(world.all(), ["x", "y", "z"]);
}

#[test]
fn a_position_stays_with_the_file_whatever_input_names_it() {
    let mut world = World::of(&["logs/a.log"]);
    fs::create_dir(world.path("logs")).unwrap();
    world.append("logs/a.log", "a\n");
    assert_eq!(world.all(), ["a"]);
    for names in [
        &["logs/*.log"][..],
        &["logs/a*", "logs/?.log"],
        &["link.log"],
    ] {
        world.restart();
        symlink(world.path("logs/a.log"), world.path("link.log")).ok();
        let text = |name: &&str| world.path(name).display().to_string();
        world.texts = names.iter().map(text).collect();
        world.append("logs/a.log", "b\n");
        assert_eq!(world.all(), ["b"], "{names:?}");
    }
}

#[test]
fn one_file_under_two_names_is_read_once() {
    let mut world = World::of(&["a.log", "*.log", "l*"]);
    world.append("a.log", "a\n");
    fs::hard_link(world.path("a.log"), world.path("hard.log")).unwrap();
    symlink(world.path("a.log"), world.path("link.log")).unwrap();
    assert_eq!(world.all(), ["a"]);
}

#[test]
fn the_target_of_a_link_that_was_rotated_is_found() {
    for restart in [false, true] {
        let mut world = World::of(&["containers/x.log"]);
        for folder in ["pods", "containers"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        symlink("../pods/0.log", world.path("containers/x.log")).unwrap();
        world.append("pods/0.log", "a\n");
        assert_eq!(world.all(), ["a"]);
        if restart {
            world.restart();
        }
        world.append("pods/0.log", "b\n");
        world.rename("pods/0.log", "pods/0.log.20261130-180000");
        world.append("pods/0.log", "c\n");
        assert_eq!(world.all(), ["b", "c"], "restart: {restart}");
        // The link gets another target.
        world.append("pods/0.log", "d\n");
        world.append("pods/1.log", "e\n");
        fs::remove_file(world.path("containers/x.log")).unwrap();
        symlink("../pods/1.log", world.path("containers/x.log")).unwrap();
        if restart {
            world.restart();
        }
        assert_eq!(world.all(), ["d", "e"], "restart: {restart}");
    }
}

#[test]
fn own_files_archives_and_special_files_are_not_followed() {
    let mut world = World::of(&["*", "store/*"]);
    world.own = Own {
        outputs: vec![world.path("out.log")],
        private: vec![world.path("store"), world.path("key.db")],
    };
    fs::create_dir(world.path("store")).unwrap();
    for name in [
        "out.log",
        "out.log.journal",
        "out.log.20261128T235959.999Z",
        "in.log.gz",
        "in.log.zst",
        "store/segment",
        "key.db-wal",
    ] {
        world.append(name, "OWN\n");
    }
    fs::hard_link(world.path("out.log"), world.path("other name")).unwrap();
    symlink(world.path("out.log"), world.path("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    world.append("in.log", "a\n");
    assert_eq!(world.all(), ["a"]);
    assert_eq!(world.tail().problems().count(), 0);
    let inputs = |text: &str, own: &Own| {
        let text = world.path(text).display().to_string();
        Inputs::new(vec![text], own.clone()).check()
    };
    let refused = inputs("*", &world.own).unwrap_err();
    assert!(refused.contains("matches the output"), "{refused}");
    let refused = inputs("link", &world.own).unwrap_err();
    assert!(refused.contains("is the output"), "{refused}");
    let refused = inputs("pipe", &world.own).unwrap_err();
    assert!(refused.contains("is a pipe"), "{refused}");
    let refused = Inputs::new(vec!["/dev/null".to_owned()], Own::default()).check();
    assert!(refused.unwrap_err().contains("is a device"));
    assert_eq!(inputs("in*", &world.own), Ok(()));
}

#[test]
fn an_existing_path_is_not_a_pattern() {
    let mut world = World::of(&["app[1].log"]);
    world.append("app[1].log", "a\n");
    world.append("app1.log", "OTHER\n");
    assert_eq!(world.all(), ["a"]);
    world.rename("app[1].log", "app[1].log.1");
    assert!(world.all().is_empty());
    world.append("app[1].log", "b\n");
    assert_eq!(world.all(), ["b"]);
}

#[test]
fn the_end_is_chosen_once_and_saved() {
    let mut world = World::of(&["*.log"]);
    world.append("a.log", "a\nb\nc");
    world.append("empty.log", "");
    world.ends_before = Some(SystemTime::now());
    std::thread::sleep(Duration::from_millis(20));
    assert!(world.all().is_empty());
    world.restart();
    world.append("a.log", "c\nd\n");
    world.append("empty.log", "e\n");
    // Made since, and so read from its beginning.
    world.append("later.log", "f\n");
    let mut all = world.all();
    all.sort();
    assert_eq!(all, ["cc", "d", "e", "f"]);
}

#[test]
fn positions_of_release_0_1_0_are_read() {
    let text = |inode: u64, offset: u64, head: &str| {
        let checksum = crc32c::crc32c(head.as_bytes());
        let head = head.len();
        format!(
            r#"{{"device":1,"inode":{inode},"offset":{offset},"head":{head},"checksum":{checksum}}}"#
        )
    };
    for is_renamed in [false, true] {
        let mut world = World::of(&["in", "*.log"]);
        world.append("in", "a\nb\nc\n");
        world.append("x.log", "x\ny\n");
        for (name, offset, head) in [("in", 4, "a\nb\n"), ("x.log", 2, "x\n")] {
            let inode =
                std::os::unix::fs::MetadataExt::ino(&fs::metadata(world.path(name)).unwrap());
            let old = serde_json::from_str(&text(inode, offset, head)).unwrap();
            let path = world.path(name);
            world.old.insert(path.display().to_string(), (path, old));
        }
        if is_renamed {
            world.rename("in", "in.1");
            world.append("in", "d\n");
        }
        let mut all = world.all();
        all.sort();
        let expected: &[&str] = if is_renamed {
            &["c", "d", "y"]
        } else {
            &["c", "y"]
        };
        assert_eq!(all, expected);
        assert!(world.old.is_empty(), "replaced by positions of the files");
    }
}

#[test]
fn another_hosts_position_is_left_alone() {
    let mut world = World::new();
    world.append("in", "a\n");
    assert_eq!(world.all(), ["a"]);
    let mut there = world.saved.values().next().unwrap().clone();
    there.inode += 1_000_000;
    there.host = "there".to_owned();
    world.saved.insert(there.key(), there);
    world.restart();
    world.append("in", "b\n");
    assert_eq!(world.all(), ["b"]);
    assert!(world.expire().is_empty());
}
