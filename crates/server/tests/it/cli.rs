//! The command line as a new user meets it.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use crate::process::{BINARY, World, wait_until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command with this standard input.
fn piped(world: &World, args: &[&str], input: &[u8]) -> Output {
    let mut child = world
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The payloads that wait in `jobs`, which has no consumer.
fn waiting(world: &World) -> Vec<String> {
    let peeked = world.json(&["queue", "peek", "jobs", "--max", "1000"]);
    let payload = |one: &serde_json::Value| one["payload"].as_str().unwrap().to_owned();
    peeked.as_array().unwrap().iter().map(payload).collect()
}

#[test]
fn alone_it_shows_its_commands_in_groups() {
    let world = World::new();
    let page = world.ok(&[]);
    for expected in [
        "Usage: towpath [OPTIONS] <COMMAND>",
        "\nRun:\n  up ",
        "\nMessages:\n  send ",
        "\nCheck:\n",
        "\nSet up:\n",
        "towpath up\n",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(page.lines().count() < 69, "{page}");
    assert_eq!(world.ok(&["help"]), world.ok(&["--help"]));
}

#[test]
fn a_misspelled_name_is_answered_with_a_suggestion() {
    let world = World::new();
    for (args, meant) in [
        (&["quue", "ls"][..], "'queue'"),
        (&["queue", "lss"], "'ls'"),
        (&["up", "--ephemral"], "'--ephemeral'"),
        (&["health", "--output", "jsn"], "'json'"),
        (&["tail", "line_stream"], "try: towpath stream tail STREAM"),
        (&["-q", "list"], "try: towpath queue ls"),
        (
            &["--set", "ingest.queue", "roles", "x"],
            "unexpected argument 'x'",
        ),
    ] {
        let output = world.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains(meant),
            "{}",
            text(&output.stderr)
        );
    }
    let output = world.run(&["run", "ingst.api"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("did you mean `ingest.api`?"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_version_has_the_facts_of_a_bug_report() {
    let world = World::new();
    let version = world.json(&["version"]);
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["commit"].as_str().unwrap().len() >= 7, "{version}");
    for (index, name) in ["log", "store"].into_iter().enumerate() {
        let format = &version["formats"][index];
        assert_eq!(format[0], name, "{version}");
        assert!(format[1].as_u64().unwrap() >= 1, "{version}");
    }
    assert_eq!(version["backends"][0], "embedded");
    let line = world.ok(&["-V"]);
    assert!(line.contains(version["commit"].as_str().unwrap()), "{line}");
}

#[test]
fn every_exit_code_of_the_table_is_kept() {
    let mut world = World::new();
    let code = |world: &World, args: &[&str]| world.run(args).status.code().unwrap();
    assert_eq!(code(&world, &["queue", "ls"]), 4);
    assert_eq!(
        code(&world, &["config", "check", "--set", "log.level=x"]),
        3
    );
    assert_eq!(
        code(&world, &["up", "--set", "backends.default=nats://x"]),
        3
    );
    let running = world.up();
    assert_eq!(code(&world, &["queue", "ls"]), 0);
    assert_eq!(code(&world, &["queue", "show", "nowhere"]), 1);
    assert_eq!(code(&world, &["queue", "show", "two words"]), 2);
    assert_eq!(code(&world, &["dlq", "redrive", "messages", "no-id"]), 2);
    assert_eq!(code(&world, &["queue", "purge", "messages"]), 2);
    assert_eq!(code(&world, &["dlq", "drop", "messages", "--yes"]), 2);
    assert_eq!(code(&world, &["health", "--url", "not a url"]), 2);
    assert_eq!(code(&world, &["queue", "ls", "--token", "wrong"]), 6);
    // A port that is taken by another client is a problem that a check found.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    drop(running);
    world.set("HTTP_ADDR", taken.local_addr().unwrap());
    assert_eq!(code(&world, &["doctor"]), 5);
}

#[test]
fn a_wrong_token_is_called_that() {
    let world = World::new();
    let _running = world.up();
    let output = world.run(&["doctor", "--token", "wrong"]);
    assert_eq!(output.status.code(), Some(5));
    let said = text(&output.stdout);
    assert!(
        said.contains("FAIL  process: ") && said.contains("refused the token"),
        "{said}"
    );
    assert!(
        said.contains("--data") && !said.contains("none answers"),
        "{said}"
    );
}

#[test]
fn the_token_is_found_from_any_folder_and_goes_with_the_process() {
    let world = World::new();
    let running = world.spawn(&["up", "--ephemeral"]);
    running.wait_ready(&world);
    world.ok(&["queue", "ls"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let output = world
        .command(&["queue", "ls"])
        .current_dir(elsewhere.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    let folder = world.runtime.path().join("towpath");
    let file = folder.join(format!("{}.token", world.admin));
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));
    running.stop();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);

    // A folder that others can look into is not used.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let running = world.up();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    drop(running);
}

#[test]
fn sent_messages_arrive_unchanged() {
    let world = World::new();
    let _running = world.up();
    world.ok(&["send", "jobs", "as it is\n"]);
    assert!(
        piped(&world, &["send", "jobs"], b"piped\r\n")
            .status
            .success()
    );
    assert!(
        piped(&world, &["send", "jobs", "-", "--raw"], b"raw\n")
            .status
            .success()
    );
    let sent = piped(
        &world,
        &["send", "jobs", "--lines"],
        b"one\r\n\ntwo\n three",
    );
    assert_eq!(text(&sent.stdout).lines().count(), 3);
    assert_eq!(
        waiting(&world),
        ["as it is\n", "piped", "raw\n", "one", "two", " three"]
    );
}

#[test]
fn a_failure_halfway_names_the_accepted_messages() {
    let world = World::new();
    let _running = world.up();
    let long = vec![b'x'; 17 << 20];
    let input = [b"one\ntwo\n", long.as_slice(), b"\nfour\n"].concat();
    let output = piped(&world, &["send", "jobs", "--lines"], &input);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    let said = text(&output.stderr);
    assert!(
        said.contains("line 3: ") && said.contains("2 accepted before it"),
        "{said}"
    );
    let args = ["send", "jobs", "--lines", "--output", "json"];
    let output = piped(&world, &args, &input);
    let sent: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), sent.as_array().unwrap().len()),
        (Some(1), 2)
    );
}

#[test]
fn every_command_answers_in_json() {
    let world = World::new();
    let running = world.spawn(&["up", "--output", "json"]);
    running.wait_ready(&world);
    world.ok(&["send", "jobs", "x"]);
    assert_eq!(world.json(&["queue", "purge", "jobs", "--yes"])["count"], 1);
    // `requeue` is the verb of version 0.1.
    for verb in ["redrive", "requeue"] {
        assert_eq!(world.json(&["dlq", verb, "messages", "--all"])["count"], 0);
    }
    assert_eq!(
        world.json(&["dlq", "drop", "messages", "--all", "--yes"])["count"],
        0
    );
    assert_eq!(world.json(&["roles"])[0]["role"], "ingest.api");
    assert_eq!(world.json(&["config", "check"])["valid"], true);
    assert_eq!(world.json(&["queue", "pause", "messages"])["paused"], true);
    assert_eq!(world.json(&["health"])["ready"], true);
    assert_eq!(world.json(&["doctor"])[0]["check"], "configuration");
    let args = [
        "config",
        "check",
        "--output",
        "json",
        "--set",
        "log.level=inof",
    ];
    let output = world.run(&args);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &answer["problems"][0]["place"]),
        (Some(3), &"flag --set".into())
    );
    let (status, log, _) = running.stop();
    assert!(
        status.success() && log.contains("\"stopped_by\": \"SIGTERM\""),
        "{log}"
    );
}

#[test]
fn colours_follow_the_option_and_the_terminal() {
    let world = World::new();
    let escape = |args: &[&str]| {
        let output = world.run(args);
        text(&output.stdout).contains('\x1b') || text(&output.stderr).contains('\x1b')
    };
    for args in [&["doctor"][..], &["queue", "ls"], &["help"], &["quue"]] {
        assert!(!escape(args), "{args:?}");
        assert!(escape(&[&["--color", "always"], args].concat()), "{args:?}");
        assert!(!escape(&[&["--color=never"], args].concat()), "{args:?}");
    }
    if !crate::process::able("script", Command::new("script").arg("-V").output().is_ok()) {
        return;
    }
    let on_terminal = |no_color: &str| {
        let mut command = world.command(&[]);
        command.env("NO_COLOR", no_color);
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &format!("{BINARY} doctor"), "/dev/null"]);
        terminal.env_clear().current_dir(&world.folder);
        for (name, value) in command.get_envs() {
            terminal.env(name, value.unwrap_or_default());
        }
        text(&terminal.stdin(Stdio::null()).output().unwrap().stdout)
    };
    assert!(
        on_terminal("").contains("\x1b[32mok"),
        "{}",
        on_terminal("")
    );
    assert!(!on_terminal("1").contains('\x1b'));
}

#[test]
fn quiet_says_less_and_verbose_says_more() {
    let world = World::new();
    assert_eq!(world.ok(&["config", "check", "-q"]), "");
    let running = world.spawn(&["up", "-q"]);
    running.wait_ready(&world);
    let output = world.run(&["queue", "ls", "-v"]);
    assert!(
        text(&output.stderr).contains("GET http://") && text(&output.stderr).contains("200 OK"),
        "{}",
        text(&output.stderr)
    );
    let (_, log, _) = running.stop();
    assert_eq!(log, "");
    let running = world.spawn(&["up", "-vv"]);
    running.wait_ready(&world);
    let (_, log, _) = running.stop();
    assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
}

#[test]
fn verbose_logs_each_thing_by_its_id_and_without_contents() {
    let mut world = World::new();
    world
        .set("INPUT_PATH", world.folder.join("in.txt").display())
        .set("TOWPATH_FLEET__WORKER__ALLOW", "127.0.0.1");
    std::fs::write(world.folder.join("in.txt"), "secret line\n").unwrap();
    let running = world.spawn(&["up", "--verbose"]);
    running.wait_ready(&world);
    let json = [("content-type", "application/json")];
    let post = |path: &str, body: &str| {
        let answer = world.client().post(path, &json, body.as_bytes());
        assert!(answer.status < 300, "{path}: {}", answer.text());
        answer.text()
    };
    let id = |answer: &str| {
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        answer["id"].as_str().unwrap().to_owned()
    };
    let answer = world.client().post("/enqueue", &[], b"secret message");
    let message = id(&answer.text());
    world
        .client()
        .send("PUT", "/inventory/case", &json, br#"{"quantity":5}"#)
        .unwrap();
    post(
        "/orders",
        r#"{"id":"order-1","sku":"case","qty":1,"email":"secret@example.com"}"#,
    );
    let user = id(&post(
        "/api/users",
        r#"{"email":"secret@example.com","name":"secret"}"#,
    ));
    world.ok(&[
        "fleet",
        "config",
        "publish",
        &format!("url=http://{}/", world.http),
        "--wait",
    ]);
    world.ok(&["task", "start"]);
    for (text, ids) in [
        ("message settled", vec![message.as_str()]),
        ("order accepted", vec!["order-1"]),
        ("order finished", vec!["order-1"]),
        ("user created", vec![&user]),
        ("event sent", vec![]),
        ("lines appended", vec![]),
        ("message settled", vec!["fleet.hits"]),
    ] {
        let is_it = |line: &str| line.contains(text) && ids.iter().all(|id| line.contains(id));
        wait_until(text, std::time::Duration::from_secs(30), || {
            running.log().lines().any(is_it)
        });
    }
    let (_, log, _) = running.stop();
    for line in log
        .lines()
        .filter(|line| line.contains("\"target\":\"towpath"))
    {
        assert!(!line.contains("secret"), "{line}");
    }
}

#[test]
fn the_demo_can_be_seen() {
    let world = World::new();
    let running = world.spawn(&["up", "--demo", "--ephemeral"]);
    running.wait_ready(&world);
    let wait = |what: &str, seen: &dyn Fn() -> bool| {
        wait_until(what, std::time::Duration::from_secs(40), seen);
    };
    let number = |args: &[&str], field: &str| world.json_of(args)[field].as_u64().unwrap_or(0);
    wait("ingest", &|| {
        number(&["queue", "show", "messages"], "acked") > 0
    });
    wait("orders", &|| number(&["orders", "check"], "processed") > 0);
    wait("users", &|| number(&["outbox", "stats"], "sent") > 0);
    wait("lines", &|| {
        number(&["stream", "show", "line_stream"], "appended") > 0
    });
    wait("limits", &|| {
        world.metric("towpath_limit_decisions_total{limit=\"default\",outcome=\"allowed\"}") > 0.0
    });
    wait("the fleet", &|| {
        let tasks = world.json(&["task", "ls"]);
        tasks
            .as_array()
            .unwrap()
            .iter()
            .any(|task| task["status"] == "completed")
    });
    // Something fails now and then.
    wait("a dead letter", &|| {
        number(&["queue", "show", "orders.queue"], "dead") > 0
    });
    wait("a rejected order", &|| {
        number(&["orders", "check"], "rejected") > 0
    });
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn completions_complete() {
    let world = World::new();
    let script = world.folder.join("towpath.bash");
    std::fs::write(&script, world.ok(&["completions", "bash"])).unwrap();
    let asked = format!(
        "source {}; COMP_WORDS=(towpath que); COMP_CWORD=1; _towpath towpath que towpath; echo ${{COMPREPLY[@]}}; COMP_WORDS=(towpath queue p); COMP_CWORD=2; _towpath towpath p queue; echo ${{COMPREPLY[@]}}",
        script.display()
    );
    let output = Command::new("bash").args(["-ec", &asked]).output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "queue\npeek pause purge\n",
        "{}",
        text(&output.stderr)
    );
    for (shell, check) in [("zsh", "-n"), ("fish", "--no-execute")] {
        let script = world.folder.join(shell);
        std::fs::write(&script, world.ok(&["completions", shell])).unwrap();
        let there = Command::new(shell).arg("--version").output().is_ok();
        if crate::process::able(shell, there) {
            let output = Command::new(shell)
                .arg(check)
                .arg(&script)
                .output()
                .unwrap();
            assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn the_file_of_the_unit_is_read() {
    let mut world = World::new();
    let etc = world.folder.join("etc");
    std::fs::create_dir(&etc).unwrap();
    world.set("CONFIGURATION_DIRECTORY", etc.display());
    world.ok(&["config", "check"]);
    std::fs::write(etc.join("towpath.toml"), "[ingest]\nqueue = \"unit\"\n").unwrap();
    std::fs::write(
        world.folder.join("towpath.toml"),
        "[ingest]\nqueue = \"here\"\n",
    )
    .unwrap();
    let shown = world.ok(&["config", "show"]);
    assert!(shown.contains("unit") && !shown.contains("here"), "{shown}");
}

#[test]
fn commands_take_address_and_token_from_the_env_file() {
    let world = World::new();
    let _running = world.up();
    let elsewhere = World::new();
    let ls = || elsewhere.run(&["queue", "ls"]);
    assert_eq!(ls().status.code(), Some(4));
    let bearer = world.bearer();
    let token = bearer.trim_start_matches("Bearer ");
    let file = elsewhere.folder.join(".env");
    let text = format!(
        "TOWPATH_URL=http://{}\nTOWPATH_TOKEN={token} # of the process\n",
        world.admin
    );
    std::fs::write(&file, text).unwrap();
    assert!(ls().status.success(), "{:?}", ls());
    std::fs::write(elsewhere.folder.join("token"), format!("{token}\n")).unwrap();
    let text = format!(
        "TOWPATH_URL=http://{}\nTOWPATH_TOKEN_FILE=token\n",
        world.admin
    );
    std::fs::write(&file, text).unwrap();
    assert!(ls().status.success(), "{:?}", ls());
}

#[test]
fn no_command_shows_a_piece_of_a_password() {
    let world = World::new();
    for args in [
        ["--url", "http://u:geheim@127.0.0.1:1/", "queue", "ls"],
        ["--url", "http://u:ge/heim@h", "queue", "ls"],
        ["--set", "redis://:geheim@h", "config", "check"],
        [
            "--set",
            "backends.default=redis://:se?geheim@h",
            "config",
            "check",
        ],
        [
            "--set",
            "backends.default=redis://:geheim",
            "config",
            "check",
        ],
    ] {
        let output = world.run(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && !said.contains("heim"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn a_variable_that_is_not_utf8_is_an_error() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let check = |name: &str| {
        let mut command = world.command(&["config", "check"]);
        command.env(name, std::ffi::OsStr::from_bytes(b"x\xff"));
        command.output().unwrap()
    };
    let output = check("QUEUE_NAME");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("QUEUE_NAME"),
        "{said}"
    );
    assert!(check("LS_COLORS").status.success());
}

#[test]
fn a_role_starts_beside_variables_of_other_apps() {
    let mut world = World::new();
    world
        .set("CONTROLLER_PORT", "high")
        .set("DB_PORT", "tcp:5432");
    assert_eq!(world.run(&["up"]).status.code(), Some(3));
    let running = world.spawn(&["run", "ingest.api"]);
    running.wait_ready(&world);
    let log = running.log();
    assert!(
        log.contains("CONTROLLER_PORT") && log.contains("DB_PORT"),
        "{log}"
    );
    world.ok(&["queue", "ls"]);
}

#[test]
fn names_of_a_publication_are_there_and_given_once() {
    let world = World::new();
    for pairs in [["url=a", "url=b"], ["=x", "a=b"], [" =x", "a=b"]] {
        let args = ["fleet", "config", "publish", pairs[0], pairs[1]];
        let output = world.run(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
}

#[test]
fn names_of_dots_come_through_paths() {
    let world = World::new();
    let _running = world.up();
    for name in [".", "..", "~."] {
        world.ok(&["kv", "set", name, "x"]);
        assert!(world.ok(&["kv", "get", name]).contains('x'), "{name}");
        world.ok(&["send", name, "hello"]);
        let peeked = world.ok(&["queue", "peek", name]);
        assert!(peeked.contains("hello"), "{peeked}");
    }
    let listed = world.ok(&["kv", "keys"]);
    assert!(listed.contains("..") && listed.contains("~."), "{listed}");
}
