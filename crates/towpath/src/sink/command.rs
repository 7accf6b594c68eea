//! A command per message: the payload on its standard input.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use towpath_core::port::Sink;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, Result};

/// Says that the message itself is wrong. Source: sysexits.h, `EX_DATAERR`.
const DATA_ERROR: i32 = 65;

/// What is kept of standard error.
const ERROR_BYTES: usize = 4096;

/// Starts the program for each message, with `TOWPATH_MESSAGE_ID`, `TOWPATH_QUEUE` and `TOWPATH_ATTEMPT` set.
///
/// Exit 0 is done, 65 gives the message up, anything else tries again, with
/// the last line of standard error as the reason. At least once: a crash between the
/// command's end and the ack runs it again, with the same message id.
#[derive(Debug)]
pub struct CommandSink {
    program: Vec<String>,
    timeout: Duration,
}

impl CommandSink {
    /// A sink that runs `program` with its arguments, each for at most `timeout`.
    ///
    /// # Errors
    /// `Invalid` without a program.
    pub fn new(program: Vec<String>, timeout: Duration) -> Result<Self> {
        if program.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("a command sink needs a program"));
        }
        Ok(Self { program, timeout })
    }

    fn start(&self, delivery: &Delivery) -> Result<Child> {
        Command::new(&self.program[0])
            .args(&self.program[1..])
            .env("TOWPATH_MESSAGE_ID", delivery.message.id.to_string())
            .env("TOWPATH_QUEUE", delivery.receipt.queue.as_str())
            .env("TOWPATH_ATTEMPT", delivery.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A signal for us must not reach it, and its children end with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                Error::unavailable(format!("`{}` cannot be started", self.program[0]))
                    .with_source(error)
            })
    }

    async fn finish(&self, mut child: Child, delivery: &Delivery) -> Outcome {
        let group = child.id();
        match tokio::time::timeout(self.timeout, run(&mut child, delivery)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                kill_group(group);
                Outcome::Retry {
                    after: None,
                    error: format!("not finished within {:?}", self.timeout),
                }
            }
        }
    }
}

async fn run(child: &mut Child, delivery: &Delivery) -> Outcome {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command may end without reading everything.
            stdin.write_all(&delivery.message.payload).await.ok();
        }
    };
    let listen = async {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                said.extend_from_slice(&buffer[..count]);
                let excess = said.len().saturating_sub(ERROR_BYTES);
                said.drain(..excess);
            }
        }
        said
    };
    let ((), said, status) = tokio::join!(feed, listen, child.wait());
    let said = String::from_utf8_lossy(&said);
    let last = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .trim();
    match status {
        Ok(status) if status.success() => Outcome::Done,
        Ok(status) => {
            let error = if last.is_empty() {
                status.to_string()
            } else {
                format!("{status}: {last}")
            };
            if status.code() == Some(DATA_ERROR) {
                Outcome::Reject { reason: error }
            } else {
                Outcome::Retry { after: None, error }
            }
        }
        Err(error) => Outcome::Retry {
            after: None,
            error: error.to_string(),
        },
    }
}

fn kill_group(leader: Option<u32>) {
    let leader = leader
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(leader) = leader {
        // Already gone is what we want.
        rustix::process::kill_process_group(leader, rustix::process::Signal::KILL).ok();
    }
}

#[async_trait]
impl Sink for CommandSink {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let mut running = Vec::with_capacity(batch.len());
        for delivery in batch {
            running.push((self.start(delivery)?, delivery));
        }
        Ok(join_all(
            running
                .into_iter()
                .map(|(child, delivery)| self.finish(child, delivery)),
        )
        .await)
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
