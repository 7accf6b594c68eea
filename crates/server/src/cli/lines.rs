//! `towpath lines`: a file through a stream into another file, and whether it came through whole.

use std::fs::File;
use std::io::{BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use towpath_core::{StreamName, units};

use super::queue::refuse_missing;
use super::{Exit, Failure, Format, Global, output};
use crate::apps::lines::{Shown, Stored};
use crate::source::Inputs;
use crate::wiring::{Copy, host, open};
use towpath::disk::folder_of;

/// What to do with lines.
#[derive(Debug, Subcommand)]
pub(super) enum LinesCommand {
    /// Copy a file through a stream into a new file and compare the two
    #[command(
        after_help = "A last line without a newline gets one. Exits with 5 when the files differ.\n\nExamples:\n  towpath lines copy input.txt copy.txt"
    )]
    Copy(CopyArgs),
    /// Show or set the reader's position in an input
    #[command(
        after_help = "Without an option the position is shown. A reader that takes over from one that keeps no position finds its place by the last line in the stream; where that is not in the file any more, say it. A running reader continues at the new position with its next step. The embedded store has to be stopped first.\n\nExamples:\n  towpath lines position /data/input.txt\n  towpath lines position /data/input.txt --line 1000\n  towpath lines position /data/input.txt --end"
    )]
    Position(PositionArgs),
}

/// Options of `lines position`.
#[derive(Debug, Args)]
pub(super) struct PositionArgs {
    /// The input, as `lines.input` names it
    path: PathBuf,
    /// Set the position to the end of the last complete line
    #[arg(long, conflicts_with = "line")]
    end: bool,
    /// Set the position after this many lines
    #[arg(long)]
    line: Option<u64>,
}

/// Options of `lines copy`.
#[derive(Debug, Args)]
pub(super) struct CopyArgs {
    /// Input file
    input: PathBuf,
    /// Output file; must not exist
    output: PathBuf,
    /// Backend URL [default: a temporary embedded store beside the output]
    #[arg(long)]
    via: Option<String>,
}

/// A file as its lines, each with a newline.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
struct Content {
    lines: u64,
    bytes: u64,
    sha256: String,
    /// Bytes of the longest line, exact where it is longer than a buffer.
    #[serde(skip)]
    longest: usize,
}

pub(super) async fn run(global: &Global, command: LinesCommand) -> Result<Exit, Failure> {
    match command {
        LinesCommand::Copy(args) => copy(global, args).await,
        LinesCommand::Position(args) => position(global, args).await,
    }
}

async fn position(global: &Global, args: PositionArgs) -> Result<Exit, Failure> {
    let loaded = global.load()?;
    let lines = &loaded.config.lines;
    let sets = args.end || args.line.is_some();
    if !sets {
        refuse_missing(lines.backend.expose())?;
    }
    towpath::net::certificate::install_provider();
    let backend = open(lines.backend.expose()).await?;
    let outcome = async {
        let positions = backend.require_source_offsets("lines position")?;
        let store = Stored {
            positions,
            stream: StreamName::new(&lines.stream)?,
            host: host(),
        };
        let requested = sets.then_some(args.line);
        store.show_or_set(&args.path, requested).await
    }
    .await;
    backend.lifecycle.close().await?;
    let Shown { position, is_saved } = outcome?;
    if global.format == Format::Json {
        let read = is_saved.then_some(position.offset);
        output::json(&serde_json::json!({ "input": args.path, "read": read }))?;
    } else if is_saved {
        output::line(format!(
            "`{}`: {} bytes read",
            args.path.display(),
            position.offset
        ))?;
    } else {
        output::line(format!("`{}`: no saved position", args.path.display()))?;
    }
    Ok(Exit::Ok)
}

async fn copy(global: &Global, args: CopyArgs) -> Result<Exit, Failure> {
    if args.output.exists() {
        let text = format!(
            "`{}` is there already; name a new file",
            args.output.display()
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    Inputs::only(&args.input)
        .check()
        .map_err(|problem| Failure::new(Exit::Usage, problem))?;
    let before = content(&args.input)?;
    if before.longest > Copy::LINE_BYTES {
        let text = format!(
            "`{}` has a line of {} bytes, and a line of a copy has {} at most",
            args.input.display(),
            before.longest,
            Copy::LINE_BYTES
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    // Removed at the end.
    let store = tempfile::Builder::new()
        .prefix(".towpath-copy-")
        .tempdir_in(folder_of(&args.output))?;
    let via = args
        .via
        .unwrap_or_else(|| format!("embedded:{}", store.path().join("store").display()));
    towpath::net::certificate::install_provider();
    let bar = progress(before.lines, global.quiet);
    let began = Instant::now();
    let copy = Copy {
        via,
        input: args.input.clone(),
        output: args.output.clone(),
        lines: before.lines,
    };
    copy.run(|_, written| bar.set_position(written)).await?;
    bar.finish_and_clear();
    let elapsed = began.elapsed();
    if before.lines == 0 {
        File::create(&args.output)?;
    }
    std::fs::remove_file(Copy::journal(&args.output)).ok();
    let after = content(&args.output)?;
    let equal = before == after;
    if global.format == Format::Json {
        output::json(&serde_json::json!({
            "input": before, "output": after, "equal": equal, "seconds": elapsed.as_secs_f64(),
        }))?;
    } else {
        let row = |name: &Path, content: &Content| {
            let lines = units::count(content.lines);
            vec![
                name.display().to_string(),
                lines,
                units::bytes(content.bytes),
                content.sha256.clone(),
            ]
        };
        let rows = [row(&args.input, &before), row(&args.output, &after)];
        output::table(&["FILE", "LINES", "BYTES", "SHA-256"], rows)?;
        let result = if equal { "equal" } else { "different" };
        let (lines, seconds) = (units::counted(before.lines, "line"), elapsed.as_secs_f64());
        output::line(format!(
            "{result}: {lines} in {seconds:.1} s{}",
            rate(before.lines, elapsed)
        ))?;
    }
    Ok(if equal { Exit::Ok } else { Exit::Problems })
}

/// The rate of a copy that took long enough to have one.
fn rate(lines: u64, elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(1) || lines < 1_000 {
        return String::new();
    }
    let rate = u128::from(lines) * 1_000 / elapsed.as_millis();
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    format!(", {} lines/s", units::count(rate))
}

fn progress(lines: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(lines);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} lines, {per_sec}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// Counts and hashes; a missing last newline is added.
fn content(path: &Path) -> Result<Content, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::failed(format!("`{}` cannot be read: {error}", path.display()))
    };
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let (mut hash, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 20]);
    let (mut lines, mut bytes, mut last) = (0, 0, b'\n');
    let (mut longest, mut open) = (0, 0);
    loop {
        let count = file.read(&mut buffer).map_err(unreadable)?;
        let Some(end) = buffer[..count].last() else {
            break;
        };
        last = *end;
        bytes += count as u64;
        let is_newline = |byte: &u8| *byte == b'\n';
        open += buffer[..count].iter().position(is_newline).unwrap_or(count);
        longest = longest.max(open);
        if let Some(newline) = buffer[..count].iter().rposition(is_newline) {
            open = count - newline - 1;
        }
        lines += buffer[..count]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count() as u64;
        hash.update(&buffer[..count]);
    }
    if last != b'\n' {
        hash.update(b"\n");
        lines += 1;
        bytes += 1;
    }
    let sha256 = hex::encode(hash.finish());
    Ok(Content {
        lines,
        bytes,
        sha256,
        longest,
    })
}
