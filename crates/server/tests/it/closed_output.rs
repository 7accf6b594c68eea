//! The output of a server is closed, or nothing reads it: the server works on.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{World, wait_until};

/// Ends with the test.
struct Server(Child);

impl Server {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn wait_ready(&self, world: &World) {
        wait_until("readiness", Duration::from_secs(30), || {
            let answer = world.admin_client().send("GET", "/readyz", &[], b"");
            answer.is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Ends in order after SIGTERM, whatever becomes of its last lines.
    fn stop(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        let began = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(
                began.elapsed() < Duration::from_secs(15),
                "it does not stop"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Takes messages, each with lines in the log.
fn works(world: &World, messages: usize) {
    let mut client = world.client();
    for _ in 0..messages {
        let answer = client.send("POST", "/enqueue", &[], b"x").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[test]
fn a_reader_that_takes_two_lines_ends_no_server() {
    let world = World::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = world.command(&["up", "-vv"]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let server = Server::start(command);
    // The command holds the other end of the pipe in this process.
    let mut lines = BufReader::new(reader).lines();
    for _ in 0..2 {
        lines.next().unwrap().unwrap();
    }
    drop(lines);
    server.wait_ready(&world);
    works(&world, 20);
    server.stop();
}

#[test]
fn a_closed_output_ends_no_server() {
    let world = World::new();
    let towpath = world.command(&["up", "-vv"]);
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" >&- 2>&-"]);
    command.arg(towpath.get_program()).args(towpath.get_args());
    command.current_dir(&world.folder).env_clear();
    for (name, value) in towpath.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let server = Server::start(command);
    server.wait_ready(&world);
    works(&world, 20);
    server.stop();
}

#[test]
fn a_pipe_that_is_never_read_blocks_no_request() {
    let world = World::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = world.command(&["up", "-vv"]);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let server = Server::start(command);
    server.wait_ready(&world);
    // Many times the capacity of a pipe.
    works(&world, 1_500);
    server.stop();
    let mut text = vec![0; 1 << 16];
    let read = reader.read(&mut text).unwrap();
    assert!(read > 32_000, "the pipe was not full: {read} bytes");
}
