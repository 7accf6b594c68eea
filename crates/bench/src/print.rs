//! Prints results.

use std::io;

use towpath_server::cli::output::{self, Format};
use towpath_server::cli::{Exit, Failure};

use crate::args::{BenchCommand, CompareArgs};
use crate::compare::{Figure, Ratio, Report};
use crate::fleet::FleetFigures;
use crate::{Row, compare, decide, fleet, http, outbox, queue};

/// Runs a measurement and prints its result.
///
/// # Errors
/// Those of the measurement and of standard output.
pub(crate) async fn run(
    format: Format,
    quiet: bool,
    command: BenchCommand,
) -> Result<Exit, Failure> {
    let rows = match command {
        BenchCommand::Queue(args) => queue::run(&args).await?,
        BenchCommand::Http(args) => http::run(&args).await?,
        BenchCommand::Limits(args) => decide::run(&args).await?,
        BenchCommand::Outbox(args) => outbox::run(&args).await?,
        BenchCommand::Compare(args) => return print_comparison(format, quiet, &args).await,
        BenchCommand::Fleet(args) => return print_fleet(format, &fleet::run(&args).await?),
    };
    if format == Format::Json {
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
            "MAX MS",
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
                    format!("{:.3}", row.max_ms),
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

fn print_fleet(format: Format, figures: &FleetFigures) -> Result<Exit, Failure> {
    if format == Format::Json {
        output::json(figures)?;
    } else {
        let rows = [
            ("agents", figures.agents.to_string()),
            (
                "published to applied, p50",
                format!("{:.1} ms", figures.applied_p50_ms),
            ),
            (
                "published to applied, p99",
                format!("{:.1} ms", figures.applied_p99_ms),
            ),
            (
                "published to applied, longest",
                format!("{:.1} ms", figures.applied_max_ms),
            ),
            (
                "memory of the controller for each",
                format!("{} bytes", figures.bytes_per_agent),
            ),
            (
                "killed to all caught up",
                format!("{:.2} s", figures.restart_seconds),
            ),
            ("answers that were errors", figures.errors.to_string()),
            (
                "CPU while they wait",
                format!("{:.1} %", figures.waiting_cpu_percent),
            ),
            (
                "CPU while each asks once a second",
                format!("{:.1} %", figures.polling_cpu_percent),
            ),
        ];
        let rows = rows.map(|(what, figure)| vec![what.to_owned(), figure]);
        output::table(&["WHAT", "FIGURE"], rows)?;
    }
    Ok(if figures.errors > 0 {
        Exit::Problems
    } else {
        Exit::Ok
    })
}

async fn print_comparison(
    format: Format,
    quiet: bool,
    args: &CompareArgs,
) -> Result<Exit, Failure> {
    let begin = |workload: &str| {
        if !quiet && format == Format::Table {
            output::note(format!("{workload} ..."));
        }
    };
    let report = compare::run(args, begin).await?;
    if format == Format::Json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.is_defect() {
        Exit::Problems
    } else {
        Exit::Ok
    })
}

fn print(report: &Report) -> io::Result<()> {
    output::table(
        &["", "TARGET", "DURABILITY"],
        report.targets.iter().enumerate().map(|(number, stated)| {
            let (target, durability) = (stated.target.clone(), stated.durability.clone());
            vec![format!("{}", number + 1), target, durability]
        }),
    )?;
    let headings = [
        "WORKLOAD",
        "TARGET",
        "PER SECOND",
        "SPREAD",
        "P50 MS",
        "P99 MS",
        "CPU US",
        "SERVER US",
        "LOST",
        "DOUBLED",
        "1 / THIS: RATE",
        "P50",
        "P99",
        "CPU",
    ];
    output::line("")?;
    let rows = report.workloads.iter().flat_map(|compared| {
        compared.targets.iter().map(|measured| {
            let ratios = measured.first_by_this;
            let cell = |value: Option<Ratio>| value.map_or_else(String::new, ratio);
            let Figure { low, high, .. } = measured.per_second;
            vec![
                compared.workload.clone(),
                measured.target.clone(),
                format!("{:.0}", measured.per_second.median),
                format!("{low:.0} to {high:.0}"),
                format!("{:.3}", measured.p50_ms.median),
                format!("{:.3}", measured.p99_ms.median),
                format!("{:.2}", measured.client_cpu_us.median),
                measured
                    .server_cpu_us
                    .map_or_else(|| "-".to_owned(), |cpu| format!("{:.2}", cpu.median)),
                measured.lost.to_string(),
                measured.duplicated.to_string(),
                cell(ratios.map(|ratios| ratios.per_second)),
                cell(ratios.map(|ratios| ratios.p50_ms)),
                cell(ratios.map(|ratios| ratios.p99_ms)),
                cell(ratios.map(|ratios| ratios.cpu_us)),
            ]
        })
    });
    output::table(&headings, rows)
}

fn ratio(ratio: Ratio) -> String {
    let mark = if ratio.uncertain { " ?" } else { "" };
    format!("{:.2}{mark}", ratio.median)
}
