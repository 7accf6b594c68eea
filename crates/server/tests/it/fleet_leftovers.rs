//! Tasks that the worker of the reference system left in its queue, asynq's in another database of the same Redis.

use serde_json::json;
use towpath_testkit::servers::redis::{DURABLE, Server, missing};
use uuid::Uuid;

use crate::fleet::{run, wait_task, world};
use crate::process::able;
use crate::web::{Reply, serve};

/// Runs a script in the database of the queue.
fn script(server: &Server, text: &str, arguments: &[&str]) -> String {
    let text = format!("redis.call('SELECT', 1) {text}");
    let words = [&["EVAL", &text, "0"], arguments].concat();
    server.command(&words).trim().to_owned()
}

/// Leaves a task as the reference worker's queue has it: an id in a list or sorted set, and a hash with the message.
fn leave(server: &Server, place: &str, url: &str) -> Uuid {
    let task = Uuid::now_v7();
    let payload = json!({ "task_id": task, "url": url, "method": "GET" }).to_string();
    // Type, payload, id, queue and retries of a protocol buffer whose lengths are below 128.
    let field = |number: u8, text: &str| {
        let (tag, length) = (
            char::from((number << 3) | 2),
            u8::try_from(text.len()).unwrap(),
        );
        assert!(length < 128, "{text}");
        format!("{tag}{}{text}", char::from(length))
    };
    let id = Uuid::now_v7().to_string();
    let message = [
        field(1, "worker:hit:execute"),
        field(2, &payload),
        field(3, &id),
        field(4, "default"),
        "\x28\x03".to_owned(),
    ]
    .concat();
    let keep = match place {
        "pending" => "redis.call('LPUSH', 'asynq:{default}:pending', ARGV[1])",
        _ => "redis.call('ZADD', 'asynq:{default}:retry', 1, ARGV[1])",
    };
    let text = format!(
        "{keep} return redis.call('HSET', 'asynq:{{default}}:t:' .. ARGV[1], 'msg', ARGV[2], 'state', ARGV[3])"
    );
    assert_eq!(script(server, &text, &[&id, &message, place]), ":2");
    task
}

#[test]
fn tasks_left_in_the_queue_of_the_reference_worker_are_adopted() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let (server, site) = (Server::start(DURABLE), serve(|_| Reply::text(200, "done")));
    let mut world = world();
    world.set(
        "TOWPATH_BACKENDS__FLEET",
        format!("redis://127.0.0.1:{}/0", server.port()),
    );
    let url = format!("http://{site}/left");
    let tasks = [
        leave(&server, "pending", &url),
        leave(&server, "retry", &url),
    ];
    let doctor = String::from_utf8(world.run(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("2 tasks are left"), "{doctor}");
    // A worker that is alive may have them.
    let alive = "redis.call('ZADD', 'asynq:servers', redis.call('TIME')[1] + 30, 'one') return 1";
    script(&server, alive, &[]);
    assert!(!world.run(&["task", "adopt"]).status.success());
    script(&server, "return redis.call('DEL', 'asynq:servers')", &[]);
    assert_eq!(world.ok(&["task", "adopt"]), "2 adopted\n");
    assert_eq!(world.ok(&["task", "adopt"]), "0 adopted\n");
    assert_eq!(script(&server, "return redis.call('DBSIZE')", &[]), ":0");
    let _running = run(&world, "fleet.worker");
    for task in tasks {
        let ended = wait_task(&world, &task.to_string());
        assert_eq!(ended["status"], "completed", "{ended}");
    }
}
