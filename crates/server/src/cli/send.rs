//! `towpath send`: messages from arguments, files and pipes.

use std::io::{BufRead, IsTerminal, Read};

use clap::Args;
use reqwest::Method;
use towpath_core::message::MAX_PAYLOAD_BYTES;

use super::client::{Client, queue_path};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::Sent;

/// Options of `send`.
#[derive(Debug, Args)]
#[command(
    after_help = "An argument is sent unchanged. One final line end of standard input is removed, unless `--raw`.\nWith `--lines` each line is sent as it is read, without its line end (`\\n` or `\\r\\n`); empty lines are skipped.\nPrints the ids of accepted messages, also when a later message fails.\n\nExamples:\n  towpath send messages 'hello'\n  echo hello | towpath send messages\n  printf 'one\\ntwo\\n' | towpath send messages --lines\n  towpath send messages 'later' --delay 1 --idempotency-key order-7"
)]
pub(super) struct SendArgs {
    /// Queue; created when it does not exist
    queue: String,
    /// Message [default: standard input, as with `-`]
    message: Option<String>,
    /// Send each line as a message
    #[arg(long)]
    lines: bool,
    /// Send standard input unchanged
    #[arg(long, conflicts_with = "lines")]
    raw: bool,
    /// Send an empty standard input as an empty message
    #[arg(long, conflicts_with = "lines")]
    allow_empty: bool,
    /// Key; messages with the same key are delivered in order, one at a time
    #[arg(long)]
    key: Option<String>,
    /// Delay of the delivery in seconds, at most ten years
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = delay)]
    delay: Option<u64>,
    /// Idempotency key: a second message with it is not stored; with `--lines` the keys are `KEY#0`, `KEY#1`, …
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Ten years: a longer delay is a mistake.
const MAX_DELAY_SECONDS: u64 = 315_360_000;

fn delay(text: &str) -> Result<u64, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| *seconds <= MAX_DELAY_SECONDS);
    seconds.ok_or_else(|| format!("expected whole seconds from 0 to {MAX_DELAY_SECONDS}"))
}

pub(super) async fn run(global: &Global, args: SendArgs) -> Result<Exit, Failure> {
    let mut sender = Sender {
        client: Client::new(global)?,
        path: queue_path(&args.queue, "/messages")?,
        as_json: global.format == Format::Json,
        sent: Vec::new(),
        args,
    };
    let outcome = sender.send_all().await;
    if sender.as_json {
        output::json(&sender.sent)?;
    }
    outcome.map(|()| Exit::Ok)
}

struct Sender {
    client: Client,
    path: String,
    as_json: bool,
    sent: Vec<Sent>,
    args: SendArgs,
}

impl Sender {
    async fn send_all(&mut self) -> Result<(), Failure> {
        let mut input: Box<dyn BufRead> = match &self.args.message {
            Some(text) if text != "-" => {
                if !self.args.lines {
                    return self.send(text.clone().into_bytes(), 0).await;
                }
                Box::new(std::io::Cursor::new(text.clone()))
            }
            _ => {
                if std::io::stdin().is_terminal() {
                    output::note("reading from the terminal; Ctrl-D on an empty line ends it");
                }
                Box::new(std::io::stdin().lock())
            }
        };
        if !self.args.lines {
            let mut message = Vec::new();
            input.read_to_end(&mut message)?;
            if message.is_empty() && !self.args.allow_empty {
                let text = "standard input is empty, and an empty message is sent only with `--allow-empty`";
                return Err(Failure::new(Exit::Usage, text));
            }
            if !self.args.raw {
                strip_line_end(&mut message);
            }
            return self.send(message, 0).await;
        }
        let (mut number, mut line) = (0, Vec::new());
        while input.read_until(b'\n', &mut line)? > 0 {
            number += 1;
            strip_line_end(&mut line);
            if !line.is_empty() {
                self.send(std::mem::take(&mut line), number).await?;
            }
        }
        Ok(())
    }

    /// Sends one message; `line` is 0 when it is the only one.
    async fn send(&mut self, message: Vec<u8>, line: usize) -> Result<(), Failure> {
        if message.len() > MAX_PAYLOAD_BYTES {
            let text = format!("the message is over the limit of {MAX_PAYLOAD_BYTES} bytes");
            return Err(self.at(line, Failure::failed(text)));
        }
        let mut headers = Vec::new();
        if let Some(key) = &self.args.key {
            headers.push(("towpath-key", key.clone()));
        }
        if let Some(delay) = self.args.delay {
            headers.push(("towpath-delay", delay.to_string()));
        }
        if let Some(key) = &self.args.idempotency_key {
            let key = match line {
                0 => key.clone(),
                _ => format!("{key}#{}", self.sent.len()),
            };
            headers.push(("idempotency-key", key));
        }
        let answer = self
            .client
            .call(Method::POST, &self.path, &headers, message)
            .await;
        let one: Sent = answer.map_err(|failure| self.at(line, failure))?;
        if !self.as_json {
            let known = if one.duplicate { " (was known)" } else { "" };
            output::line(format!("{}{known}", one.id))?;
        }
        self.sent.push(one);
        Ok(())
    }

    /// The failure with its line, and the number of messages before it.
    fn at(&self, line: usize, failure: Failure) -> Failure {
        match failure {
            Failure::Said(exit, text) if line > 0 => {
                let count = self.sent.len();
                let text = format!("line {line}: {text}; {count} accepted before it");
                Failure::new(exit, text)
            }
            other => other,
        }
    }
}

/// Removes one `\n` or `\r\n` at the end.
fn strip_line_end(bytes: &mut Vec<u8>) {
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
}
