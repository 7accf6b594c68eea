//! `towpath send`: messages from arguments, files and pipes.

use std::io::Read;

use clap::Args;
use reqwest::Method;

use super::client::{Client, queue_path};
use super::{Exit, Failure, Format, Global, output};
use crate::admin::Sent;

/// Options of `send`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  towpath send messages 'hello'\n  echo hello | towpath send messages -\n  printf 'one\\ntwo\\n' | towpath send messages --lines -\n  towpath send messages 'later' --delay 1 --idempotency-key order-7"
)]
pub(super) struct SendArgs {
    /// The queue
    queue: String,
    /// The message; `-` reads standard input
    body: String,
    /// Each line is a message of its own
    #[arg(long)]
    lines: bool,
    /// Messages of one key are delivered in order, one at a time
    #[arg(long)]
    key: Option<String>,
    /// Seconds until it may be delivered
    #[arg(long, value_name = "SECONDS")]
    delay: Option<u64>,
    /// A second message with this key is not stored
    #[arg(long)]
    idempotency_key: Option<String>,
}

pub(super) async fn run(global: &Global, args: SendArgs) -> Result<Exit, Failure> {
    let body = if args.body == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        bytes
    } else {
        args.body.into_bytes()
    };
    let messages: Vec<Vec<u8>> = if args.lines {
        body.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    } else {
        vec![body.strip_suffix(b"\n").unwrap_or(&body).to_vec()]
    };
    let client = Client::new(global)?;
    let path = queue_path(&args.queue, "/messages")?;
    let mut sent = Vec::new();
    for (number, message) in messages.into_iter().enumerate() {
        let mut headers = Vec::new();
        if let Some(key) = &args.key {
            headers.push(("towpath-key", key.clone()));
        }
        if let Some(delay) = args.delay {
            headers.push(("towpath-delay", delay.to_string()));
        }
        if let Some(key) = &args.idempotency_key {
            headers.push((
                "idempotency-key",
                if args.lines {
                    format!("{key}#{number}")
                } else {
                    key.clone()
                },
            ));
        }
        let answer: Sent = client.call(Method::POST, &path, &headers, message).await?;
        sent.push(answer);
    }
    match global.format {
        Format::Json => output::json(&sent)?,
        Format::Table => {
            for one in &sent {
                output::line(format!(
                    "{}{}",
                    one.id,
                    if one.duplicate { " (was known)" } else { "" }
                ))?;
            }
        }
    }
    Ok(Exit::Ok)
}
