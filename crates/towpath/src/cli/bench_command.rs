//! Prints what `bench` measured.

use super::bench::{BenchCommand, Row, run_http, run_queue};
use super::{Exit, Failure, Format, Global, output};

pub(super) async fn run(global: &Global, command: BenchCommand) -> Result<Exit, Failure> {
    let rows = match command {
        BenchCommand::Queue(args) => run_queue(&args).await?,
        BenchCommand::Http(args) => run_http(&args).await?,
    };
    if global.format == Format::Json {
        output::json(&rows)?;
    } else {
        let headings = [
            "WHAT",
            "DURABILITY",
            "CALLERS",
            "BATCH",
            "PER SECOND",
            "P50 MS",
            "P99 MS",
            "P99.9 MS",
            "CPU US",
            "LOST",
            "DOUBLED",
        ];
        output::table(
            &headings,
            rows.iter().map(|row| {
                vec![
                    row.what.clone(),
                    row.durability.clone(),
                    row.callers.to_string(),
                    row.batch.to_string(),
                    format!("{:.0}", row.per_second),
                    format!("{:.3}", row.p50_ms),
                    format!("{:.3}", row.p99_ms),
                    format!("{:.3}", row.p999_ms),
                    format!("{:.2}", row.cpu_us),
                    row.lost.to_string(),
                    row.duplicated.to_string(),
                ]
            }),
        )?;
    }
    Ok(if rows.iter().any(Row::is_defect) {
        Exit::Problems
    } else {
        Exit::Ok
    })
}
