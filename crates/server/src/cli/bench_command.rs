//! Prints what `bench` measured.

use std::io;

use super::bench::{
    BenchCommand, CompareArgs, Figure, FleetFigures, Ratio, Report, Row, run_compare, run_fleet,
    run_http, run_limits, run_outbox, run_queue,
};
use super::{Exit, Failure, Format, Global, output};

pub(super) async fn run(global: &Global, command: BenchCommand) -> Result<Exit, Failure> {
    let rows = match command {
        BenchCommand::Queue(args) => run_queue(&args).await?,
        BenchCommand::Http(args) => run_http(&args).await?,
        BenchCommand::Limits(args) => run_limits(&args).await?,
        BenchCommand::Outbox(args) => run_outbox(&args).await?,
        BenchCommand::Compare(args) => return compare(global, &args).await,
        BenchCommand::Fleet(args) => return fleet(global, &run_fleet(&args).await?),
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

fn fleet(global: &Global, figures: &FleetFigures) -> Result<Exit, Failure> {
    if global.format == Format::Json {
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

async fn compare(global: &Global, args: &CompareArgs) -> Result<Exit, Failure> {
    let begin = |workload: &str| {
        if !global.quiet && global.format == Format::Table {
            output::note(format!("{workload} ..."));
        }
    };
    let report = run_compare(args, begin).await?;
    if global.format == Format::Json {
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
