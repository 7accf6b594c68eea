//! Commands ask the running process, say whose answer it is, and make nothing by looking.

use std::time::Duration;

use crate::process::{World, wait_until};

#[test]
fn the_running_process_examines_itself() {
    let mut world = World::new();
    world.set("TOWPATH_EMBEDDED__DURABILITY", "none");
    let running = world.up();
    // A shell with another configuration and folder.
    world.set("TOWPATH_EMBEDDED__DURABILITY", "fsync");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = world.command(&["doctor"]);
    let output = command.current_dir(elsewhere.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let process = format!("pid {}", running.id());
    let folder = format!("data in `{}`", world.data().display());
    for expected in [
        &*process,
        &folder,
        "all that follows is its answer",
        "durability: none",
        "fleet.database, ",
        "ok    disk: ",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("fsync before every"), "{text}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // The route is the command's source.
    let bearer = world.bearer();
    let headers = [("authorization", &*bearer)];
    let answer = world
        .admin_client()
        .send("POST", "/v1/doctor", &headers, b"")
        .unwrap();
    assert_eq!(answer.json()["pid"], running.id(), "{}", answer.text());
}

#[test]
fn commands_make_nothing_where_no_process_runs() {
    let world = World::new();
    for args in [
        &["outbox", "stats"][..],
        &["outbox", "ls"],
        &["backfill", "--dry-run"],
        &["fleet", "agents"],
        &["fleet", "config", "get"],
        &["task", "ls"],
        &["orders", "check"],
        &["queue", "ls"],
        &["queue", "recover", "messages"],
        &["lines", "position", "input.txt"],
        &["status"],
        &["migrate", "status"],
        &["doctor"],
        &["ps"],
    ] {
        let output = world.run(args);
        let left = std::fs::read_dir(&world.folder).unwrap().count();
        assert_eq!(left, 0, "{args:?}: {output:?}");
    }
}

#[test]
fn fleet_and_tasks_go_by_the_admin_token_from_any_folder() {
    let mut world = World::new();
    world.set("API_KEY", "a-key-that-the-shell-lacks");
    let _running = world.up();
    world.set("API_KEY", "");
    let elsewhere = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = world
            .command(args)
            .current_dir(elsewhere.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {output:?}");
        text
    };
    let published = run(&[
        "fleet",
        "config",
        "publish",
        "url=https://example.com/",
        "--wait",
    ]);
    assert_eq!(published, "published version 1\napplied by 1 agent\n");
    assert!(run(&["fleet", "config", "get"]).contains("https://example.com/"));
    assert!(run(&["fleet", "agents"]).contains("active"));
    assert!(run(&["fleet", "audit"]).contains("publish"));
    let started = run(&["task", "start", "--json"]);
    let started: serde_json::Value = serde_json::from_str(&started).unwrap();
    let id = started["task_id"].as_str().unwrap();
    assert!(run(&["task", "get", id]).contains(id));
    assert!(run(&["task", "ls"]).contains(id));
    assert!(run(&["task", "cancel", id]).contains(id));
    let refused = world.run(&["task", "get", "00000000-0000-0000-0000-000000000000"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn canaries_decide_whether_the_others_are_put_back() {
    let mut world = World::new();
    world.set("TOWPATH_INGEST__WORKER__SINK", "command");
    let program = r#"["sh", "-c", "test -e fixed || exit 65"]"#;
    world.set("TOWPATH_INGEST__WORKER__COMMAND__PROGRAM", program);
    let _running = world.up();
    let dead = || {
        world.json(&["queue", "show", "messages"])["dead"]
            .as_u64()
            .unwrap()
    };
    for number in 0..25 {
        world.ok(&["send", "messages", &number.to_string()]);
    }
    wait_until("dead letters", Duration::from_secs(30), || dead() == 25);
    let listed = world.run(&["dlq", "ls"]);
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(
        said.contains("20 of 25 dead letters; `--max` shows more"),
        "{said}"
    );
    let args = ["dlq", "redrive", "messages", "--all", "--canary", "2"];
    let output = world.run(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("died again") && said.contains("left as they are"),
        "{said}"
    );
    wait_until("the canaries to die", Duration::from_secs(30), || {
        dead() == 25
    });
    std::fs::write(world.folder.join("fixed"), "").unwrap();
    assert_eq!(world.ok(&args), "25 redriven\n");
    wait_until("delivery", Duration::from_secs(30), || {
        world.json(&["queue", "show", "messages"])["acked"] == 25
    });
    assert_eq!(dead(), 0);
}

#[test]
fn an_empty_standard_input_is_not_sent_by_mistake() {
    let world = World::new();
    let _running = world.up();
    let send = |args: &[&str]| {
        let mut command = world.command(args);
        command.stdin(std::process::Stdio::null()).output().unwrap()
    };
    let refused = send(&["send", "jobs"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--allow-empty"), "{said}");
    assert!(send(&["send", "jobs", "--allow-empty"]).status.success());
    let refused = send(&["send", "jobs", "x", "--delay", "-1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("expected whole seconds from 0"), "{said}");
}
