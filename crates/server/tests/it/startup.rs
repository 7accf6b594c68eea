//! Starting: once, twice, on a taken port, with nothing kept, with a broken configuration.

use std::net::TcpListener;

use crate::process::World;

#[test]
fn a_second_process_says_in_one_line_why_it_cannot_start() {
    let world = World::new();
    let running = world.up();
    let second = world.run(&["up"]);
    assert_eq!(second.status.code(), Some(4));
    let text = String::from_utf8(second.stderr).unwrap();
    let error: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(error.len(), 1, "{text}");
    assert!(
        error[0].contains("is in use by process") && error[0].contains(&running.id().to_string()),
        "{text}"
    );
    // And the first one did not notice.
    assert_eq!(world.client().post("/enqueue", &[], b"x").status, 200);
}

#[test]
fn a_taken_port_is_named_with_its_setting() {
    let mut world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    world.set("HTTP_ADDR", taken.local_addr().unwrap());
    let output = world.run(&["up"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("server.listen") && text.contains(&taken.local_addr().unwrap().to_string()),
        "{text}"
    );
    // Nothing was made before that was known.
    let left = std::fs::read_dir(&world.folder).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn an_ephemeral_start_leaves_nothing_behind() {
    let world = World::new();
    let running = world.spawn(&["up", "--ephemeral"]);
    running.wait_ready(&world);
    assert_eq!(world.client().post("/enqueue", &[], b"x").status, 200);
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    assert_eq!(std::fs::read_dir(&world.folder).unwrap().count(), 0);
}

#[test]
fn an_ephemeral_start_overrules_every_place_where_something_is_kept() {
    let mut world = World::new();
    let file = "[backends]\ndefault = \"embedded:./kept\"\n[embedded]\ndurability = \"fsync\"\n";
    std::fs::write(world.folder.join("towpath.toml"), file).unwrap();
    world.set("OUTPUT_PATH", "kept.log");
    let running = world.spawn(&["up", "--ephemeral"]);
    running.wait_ready(&world);
    assert_eq!(world.client().post("/enqueue", &[], b"x").status, 200);
    let (status, log, _) = running.stop();
    assert!(status.success(), "{log}");
    // Only the configuration is there, and the log names the skipped parts.
    assert_eq!(
        std::fs::read_dir(&world.folder).unwrap().count(),
        1,
        "{log}"
    );
    for said in [
        "`--ephemeral` overrules `backends.default` (towpath.toml:2:11)",
        "`--ephemeral` overrules `ingest.worker.output` (OUTPUT_PATH)",
    ] {
        assert!(log.contains(said), "{log}");
    }
    let output = world.run(&["up", "--ephemeral", "--data", "x"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_broken_configuration_ends_with_3_and_every_problem() {
    let world = World::new();
    std::fs::write(
        world.folder.join("towpath.toml"),
        "[ingest]\nqeue = \"x\"\nmax_body = \"lots\"\n",
    )
    .unwrap();
    for args in [&["up"][..], &["config", "check"]] {
        let output = world.run(args);
        assert_eq!(output.status.code(), Some(3), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("towpath.toml:2:1") && text.contains("did you mean `queue`"),
            "{text}"
        );
        assert!(text.contains("towpath.toml:3:"), "{text}");
    }
}

#[test]
fn the_demo_sends_a_little_traffic() {
    let world = World::new();
    let running = world.spawn(&["up", "--demo"]);
    running.wait_ready(&world);
    crate::process::wait_until("demo lines", std::time::Duration::from_secs(10), || {
        world.lines().len() >= 3
    });
}

#[test]
fn the_admin_api_wants_its_token() {
    let world = World::new();
    let _running = world.up();
    let mut admin = world.admin_client();
    let answer = admin.get("/v1/queues");
    assert_eq!(answer.status, 401);
    assert!(answer.headers["content-type"].starts_with("application/problem+json"));
    let token = std::fs::read_to_string(world.data().join("admin.token")).unwrap();
    let bearer = format!("Bearer {}", token.trim());
    let answer = admin
        .send("GET", "/v1/queues", &[("authorization", &bearer)], b"")
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let document = admin.get("/openapi.json");
    assert_eq!(
        document.json()["openapi"]
            .as_str()
            .unwrap()
            .split('.')
            .next(),
        Some("3")
    );
    assert_eq!(admin.get("/livez").status, 200);
}

#[test]
fn the_first_line_of_the_log_names_the_backends_and_their_origin() {
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Variables, &[&str], &str); 3] = [
        (
            &[],
            &["run", "gateway"],
            "backends.orders = the embedded store (nothing else is set)",
        ),
        (
            &[("REDIS_ADDR", ":1")],
            &["run", "gateway"],
            "backends.orders = redis://localhost:1/0 (REDIS_ADDR)",
        ),
        (
            &[("REDIS_ADDR", "127.0.0.1:1")],
            &["run", "--reference", "gateway"],
            "backends.orders = amqp://guest:***@localhost:5672/ (RABBITMQ_URLS), backends.orders_kv = redis://127.0.0.1:1/0 (REDIS_ADDR)",
        ),
    ];
    for (variables, args, expected) in cases {
        let mut world = World::new();
        for (name, value) in variables {
            world.set(name, value);
        }
        let running = world.spawn(args);
        crate::process::wait_until(
            "a line of the log",
            std::time::Duration::from_secs(10),
            || running.log().contains('\n'),
        );
        let log = running.log();
        let first = log.lines().next().unwrap_or_default();
        assert!(
            first.contains("backends chosen") && first.contains(expected),
            "{first}"
        );
        running.kill();
    }
}
