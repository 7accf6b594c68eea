//! A reader of the reference system, which keeps no position, and ours, one after the other on one file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use towpath_testkit::servers::redis::{DURABLE, Server, missing};

use crate::process::{World, able, wait_until};

const SOON: Duration = Duration::from_secs(30);

struct Fixture {
    server: Server,
    world: World,
    input: PathBuf,
    /// Every line of the input.
    lines: Vec<String>,
}

impl Fixture {
    fn new() -> Option<Self> {
        if !able("redis", missing().is_none()) {
            return None;
        }
        let (server, mut world) = (Server::start(DURABLE), World::new());
        let input = world.folder.join("input.txt");
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
        world.set("INPUT_PATH", input.display());
        world.set("TOWPATH_LINES__POLL", "20ms");
        Some(Self {
            server,
            world,
            input,
            lines: Vec::new(),
        })
    }

    /// Appends lines; every tenth is the same as others before it.
    fn write(&mut self, count: usize) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.input)
            .unwrap();
        for _ in 0..count {
            let number = self.lines.len();
            let line = match number % 10 {
                9 => "the same".to_owned(),
                _ => format!("line {number}"),
            };
            writeln!(file, "{line}").unwrap();
            self.lines.push(line);
        }
    }

    /// The reference reader sends the lines from one to another.
    fn send_bare(&self, lines: std::ops::Range<usize>) {
        for line in &self.lines[lines] {
            let sent = self
                .server
                .command(&["XADD", "line_stream", "*", "line", line]);
            assert!(sent.starts_with('$'), "{sent}");
        }
    }

    fn entries(&self) -> usize {
        let length = self.server.command(&["XLEN", "line_stream"]);
        length.trim().trim_start_matches(':').parse().unwrap()
    }

    /// Runs our reader until the stream has this many entries, and a little longer.
    fn read_until(&self, count: usize) {
        let running = self.world.spawn(&["run", "reader"]);
        running.wait_ready(&self.world);
        wait_until(&format!("{count} entries"), SOON, || {
            self.entries() >= count
        });
        std::thread::sleep(Duration::from_millis(200));
        running.stop();
        assert_eq!(self.entries(), count);
    }

    /// The payloads of the stream, in order.
    fn sent(&self) -> Vec<String> {
        let mut client = redis_reply(self.server.port());
        client.all_lines()
    }
}

/// A client that reads a reply of any shape.
struct Replies(std::io::BufReader<std::net::TcpStream>);

fn redis_reply(port: u16) -> Replies {
    let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    Replies(std::io::BufReader::new(stream))
}

impl Replies {
    fn line(&mut self) -> String {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.0, &mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn number(&mut self) -> usize {
        self.line()[1..].parse().unwrap()
    }

    /// A bulk string, which a text client must be able to read.
    fn text(&mut self) -> String {
        let length = self.number();
        let mut bytes = vec![0; length + 2];
        std::io::Read::read_exact(&mut self.0, &mut bytes).unwrap();
        bytes.truncate(length);
        String::from_utf8(bytes).expect("every field is text")
    }

    fn all_lines(&mut self) -> Vec<String> {
        let ask = b"*4\r\n$6\r\nXRANGE\r\n$11\r\nline_stream\r\n$1\r\n-\r\n$1\r\n+\r\n";
        self.0.get_mut().write_all(ask).unwrap();
        let count = self.number();
        let mut lines = Vec::new();
        for _ in 0..count {
            assert_eq!(self.number(), 2);
            self.text();
            let fields = self.number();
            for _ in 0..fields / 2 {
                let (name, value) = (self.text(), self.text());
                if name == "line" {
                    lines.push(value);
                }
            }
        }
        lines
    }
}

#[test]
fn a_reader_that_takes_over_continues_behind_the_last_line_of_the_stream() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    fixture.write(1_000);
    fixture.send_bare(0..600);
    // From the reference's reader to ours, with lines that were written in between.
    fixture.read_until(1_000);
    // And to the reference's and back, three times.
    for round in 0..3 {
        let before = fixture.lines.len();
        fixture.write(100);
        fixture.send_bare(before..before + 100);
        fixture.write(20 + round);
        fixture.read_until(fixture.lines.len());
    }
    assert_eq!(fixture.sent(), fixture.lines);
}

#[test]
fn a_position_is_set_where_an_operator_says() {
    let Some(mut fixture) = Fixture::new() else {
        return;
    };
    fixture.write(50);
    let input = fixture.input.display().to_string();
    let shown = fixture.world.ok(&["lines", "position", &input]);
    assert_eq!(shown, format!("`{input}`: no saved position\n"));
    fixture
        .world
        .ok(&["lines", "position", &input, "--line", "30"]);
    fixture.read_until(20);
    assert_eq!(fixture.sent(), fixture.lines[30..]);
    // Lines that another reader has sent, and that are not in the stream any more.
    fixture.write(10);
    fixture.server.command(&["DEL", "line_stream"]);
    fixture.world.ok(&["lines", "position", &input, "--end"]);
    let shown = fixture.world.json(&["lines", "position", &input]);
    let length = std::fs::metadata(&fixture.input).unwrap().len();
    assert_eq!(shown["read"], length);
    fixture.write(5);
    fixture.read_until(5);
    assert_eq!(fixture.sent(), fixture.lines[60..]);
    let refused = fixture
        .world
        .run(&["lines", "position", &input, "--line", "99"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("it has 65 lines"),
        "{said}"
    );
}
