//! Everything the README tells a newcomer to type works as written.

use std::process::Command;

use crate::process::{BINARY, World, wait_until};

/// The commands between these markers.
fn tour(name: &str) -> String {
    let readme = include_str!("../../../../README.md");
    let (_, rest) = readme.split_once(&format!("<!-- {name}:begin")).unwrap();
    let (block, _) = rest.split_once(&format!("<!-- {name}:end")).unwrap();
    let (_, code) = block.split_once("```sh\n").unwrap();
    code.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_tour_runs_as_written() {
    let world = World::new();
    let running = world.up();
    let binary = std::path::Path::new(BINARY).parent().unwrap();
    // Ports and the place of the binary are the test's own; every other letter is the README's.
    let script = tour("tour")
        .replace("localhost:8080", &world.http.to_string())
        .replace("$PWD/target/release", &binary.display().to_string());
    let output = Command::new("sh")
        .args(["-euxc", &script])
        .current_dir(&world.folder)
        .env("TOWPATH_SERVER__ADMIN", world.admin.to_string())
        .env("HTTP_ADDR", world.http.to_string())
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(
        stdout.contains(" | hello\n") && stdout.contains(" | hello json\n"),
        "{stdout}"
    );
    world.wait_drained();
    let mut messages = world.messages();
    messages.sort();
    assert_eq!(
        messages,
        ["hello", "hello json", "once", "one", "two", "wait for me"]
    );
    drop(running);
}

#[test]
fn the_tour_of_jobs_runs_as_written() {
    let Some(interpreter) = crate::jobs::python() else {
        return;
    };
    let world = World::new();
    let running = world.up();
    let binary = std::path::Path::new(BINARY).parent().unwrap();
    let bin = interpreter.parent().unwrap();
    // The client is installed already, from its wheel.
    let script = tour("jobs").replace("pip install ./clients/python", "pip show -q towpath");
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-euxc", &script])
        .current_dir(&world.folder)
        .env(
            "PATH",
            format!("{}:{}:{path}", bin.display(), binary.display()),
        )
        .env("TOWPATH_SERVER__ADMIN", world.admin.to_string())
        .env("TOWPATH_URL", format!("http://{}", world.admin))
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for expected in ["sent to ann@example.com\n", "no address"] {
        assert!(stdout.contains(expected), "{expected}: {stdout}\n{stderr}");
    }
    drop(running);
}

#[test]
fn the_four_requests_of_the_guide_to_jobs_run_as_written() {
    let guide = include_str!("../../../../docs/guides/jobs.md");
    let (_, block) = guide.split_once("```sh\ntowpath up &\n").unwrap();
    let (script, _) = block.split_once("```").unwrap();
    let world = World::new();
    let running = world.up();
    let script = script.replace("127.0.0.1:7070", &world.admin.to_string());
    let output = Command::new("sh")
        .args(["-euxc", &script])
        .current_dir(&world.folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("\"outcome\":\"ok\""),
        "{said}"
    );
    let stats = world.json(&["queue", "show", "emails"]);
    assert_eq!((&stats["acked"], &stats["ready"]), (&1.into(), &0.into()));
    drop(running);
}

#[test]
fn the_tour_of_orders_runs_as_written() {
    let world = World::new();
    let running = world.up();
    let binary = std::path::Path::new(BINARY).parent().unwrap();
    let script = tour("orders")
        .replace("localhost:8080", &world.http.to_string())
        .replace("localhost:8081", &world.dashboard.to_string());
    let output = Command::new("sh")
        .args(["-ec", &script])
        .current_dir(&world.folder)
        .env(
            "PATH",
            format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()),
        )
        .env("TOWPATH_SERVER__ADMIN", world.admin.to_string())
        .output()
        .unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for expected in [
        "OK\nOrder received: order123Duplicate order\n",
        "\"state\":\"processed\"",
        "\n98\n",
        "\"inventory_level\":98",
        "\"status\":\"sent\"",
        "balanced: 1 accepted = 1 processed + 0 rejected + 0 in flight + 0 dead",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}\n{stderr}");
    }
    drop(running);
}

/// Runs a tour against a process of this world, with these words of it replaced. Returns its output.
fn walk(world: &World, name: &str, words: &[(&str, &str)]) -> String {
    let mut script = tour(name).replace("localhost:8080", &world.http.to_string());
    for (word, other) in words {
        script = script.replace(word, other);
    }
    let binary = std::path::Path::new(BINARY).parent().unwrap();
    let output = Command::new("sh")
        .args(["-ec", &script])
        .current_dir(&world.folder)
        .env(
            "PATH",
            format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()),
        )
        .env("TOWPATH_SERVER__ADMIN", world.admin.to_string())
        .env(
            "TOWPATH_FLEET__CONTROLLER__LISTEN",
            world.controller.to_string(),
        )
        .env("TOWPATH_FLEET__WORKER__LISTEN", world.hits.to_string())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout
}

#[test]
fn the_tour_of_lines_runs_as_written() {
    let world = World::new();
    let _running = world.up();
    let printed = walk(&world, "lines", &[]);
    assert!(printed.contains("equal"), "{printed}");
    assert!(printed.ends_with("one\ntwo\n"), "{printed}");
}

#[test]
fn the_tour_of_limits_runs_as_written() {
    let world = World::new();
    let _running = world.up();
    let output = walk(&world, "limits", &[]);
    assert!(output.contains(r#""remaining_tokens":99"#), "{output}");
}

#[test]
fn the_tour_of_users_runs_as_written() {
    let world = World::new();
    let _running = world.up();
    let output = walk(&world, "users", &[]);
    assert!(output.contains("user.created"), "{output}");
    assert!(output.contains(" 0    1     0"), "{output}");
}

#[test]
fn the_tour_of_the_fleet_runs_as_written() {
    let mut world = World::new();
    // As the line above the block says.
    world.set("TOWPATH_FLEET__WORKER__ALLOW", "127.0.0.1");
    let _running = world.up();
    let hits = world.hits.to_string();
    let http = world.http.to_string();
    let words = [("localhost:6002", &*hits), ("127.0.0.1:8080", &*http)];
    let output = walk(&world, "fleet", &words);
    for expected in [
        "published version 1\napplied by 1 agent\n",
        "active",
        "\"status\":\"queued\"",
        "completed  200",
        "/healthz",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
}

#[test]
fn every_example_of_the_help_runs() {
    let mut world = World::new();
    let input = world.folder.join("input.txt");
    std::fs::write(&input, "one\ntwo\n").unwrap();
    world.set("INPUT_PATH", input.display());
    let running = world.up();
    let lines = || {
        world
            .run(&["stream", "show", "line_stream"])
            .status
            .success()
    };
    wait_until("the stream", std::time::Duration::from_secs(30), lines);
    world.client().post("/enqueue", &[], b"example");
    world.ok(&["send", "old-jobs", "example"]);
    world.ok(&["send", "emails", "example"]);
    let user = br#"{"email":"a@example.com","name":"A"}"#;
    let json = ("content-type", "application/json");
    assert_eq!(world.client().post("/api/users", &[json], user).status, 201);
    wait_until("its event", std::time::Duration::from_secs(30), || {
        let shown = world.run(&["stream", "show", "user-events"]);
        shown.status.success()
    });
    let (mut ran, mut failed) = (0, Vec::new());
    for example in examples() {
        // These are the tests of `startup`.
        if example.starts_with("towpath up") || example.starts_with("towpath run") {
            continue;
        }
        // Runs until it is stopped: the tests of `jobs::command`.
        if example.starts_with("towpath job worker") {
            continue;
        }
        // These want the backend to themselves, a Redis, or to take back the tables; `redis`, `lines_changing_over`,
        // `fleet_leftovers` and the cases of databases have their tests.
        let is_alone = [
            "towpath queue recover",
            "towpath lines position",
            "towpath task adopt",
            "towpath migrate down",
        ];
        if is_alone.iter().any(|alone| example.starts_with(alone)) {
            continue;
        }
        // Those of buckets are the tests of `backup_s3`.
        if example.contains("s3://") {
            continue;
        }
        let binary = std::path::Path::new(BINARY).parent().unwrap();
        let output = Command::new("sh")
            .args(["-ec", &example])
            .current_dir(&world.folder)
            .env(
                "PATH",
                format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()),
            )
            .env("TOWPATH_SERVER__ADMIN", world.admin.to_string())
            .env("HTTP_ADDR", world.http.to_string())
            .env(
                "TOWPATH_FLEET__CONTROLLER__LISTEN",
                world.controller.to_string(),
            )
            .env("TOWPATH_FLEET__WORKER__LISTEN", world.hits.to_string())
            .output()
            .unwrap();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            failed.push(format!("{example}: {error}"));
        }
        ran += 1;
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(ran >= 10, "only {ran} examples found");
    drop(running);
}

/// The lines under "Examples:" of every command's help.
fn examples() -> Vec<String> {
    let page = include_str!("../../../../docs/reference/cli.md");
    let mut examples = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        if line.trim() == "Examples:" {
            inside = true;
        } else if inside && line.trim().is_empty() || line.starts_with("```") {
            inside = false;
        } else if inside {
            examples.push(line.trim().trim_start_matches("$ ").to_owned());
        }
    }
    examples
}
