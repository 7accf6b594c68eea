//! Grafana: a dashboard from the metrics there are, so that no panel asks for one that is not.

use serde_json::{Value, json};

use crate::telemetry::Metric;

/// A row of panels: its title, and of each panel the title, the unit and the queries with their legends.
type Row = (
    &'static str,
    &'static [(&'static str, &'static str, &'static [(Query, &'static str)])],
);

/// The query of a panel.
enum Query {
    /// The metric as it is, the largest of all processes for each of these labels.
    Max(Metric, &'static str),
    /// Rate of a counter, all processes together, for each of these labels.
    Rate(Metric, &'static str),
    /// The share of a counter with other outcomes than these, all processes together, for each of these labels.
    Share(Metric, &'static str, &'static str),
    /// The time that 99 of 100 stay under, for each of these labels.
    P99(Metric, &'static str),
}

impl Query {
    fn text(&self) -> String {
        match self {
            Self::Max(metric, by) => format!("max by ({by}) ({})", metric.row().0),
            Self::Rate(metric, by) => {
                format!("sum by ({by}) (rate({}[$__rate_interval]))", metric.row().0)
            }
            Self::Share(metric, others, by) => {
                let name = metric.row().0;
                let sum = |selector: &str| {
                    format!("sum by ({by}) (rate({name}{selector}[$__rate_interval]))")
                };
                let selector = format!("{{outcome!~\"{others}\"}}");
                format!("{} / {}", sum(&selector), sum(""))
            }
            Self::P99(metric, by) => format!(
                "histogram_quantile(0.99, sum by (le, {by}) (rate({}_bucket[$__rate_interval])))",
                metric.row().0
            ),
        }
    }
}

/// Metrics without a panel: constants, bounds of another figure, and sums of figures that have one.
#[cfg(test)]
const WITHOUT_PANEL: [Metric; 7] = [
    Metric::ProcessDuration,
    Metric::QueueOldestAge,
    Metric::QueuesSummed,
    Metric::DiskSize,
    Metric::BuildInfo,
    Metric::ProcessMaxFds,
    Metric::ProcessStart,
];

const ROWS: &[Row] = &[
    (
        "Problems",
        &[
            (
                "Problems",
                "short",
                &[(
                    Query::Max(Metric::Problem, "problem, subject"),
                    "{{problem}} {{subject}}",
                )],
            ),
            (
                "Failing share of delivery attempts",
                "percentunit",
                &[(
                    Query::Share(Metric::Deliveries, "done|lost", "queue"),
                    "{{queue}}",
                )],
            ),
            (
                "Failures of sinks",
                "short",
                &[(Query::Rate(Metric::SinkFailures, "queue"), "{{queue}}")],
            ),
            (
                "Destinations paused or limited",
                "short",
                &[(
                    Query::Max(Metric::Destinations, "role, state"),
                    "{{role}} {{state}}",
                )],
            ),
            (
                "Backends that reject writes",
                "short",
                &[(
                    Query::Max(Metric::BackendRefusing, "instance, backend, reason"),
                    "{{instance}} {{backend}} {{reason}}",
                )],
            ),
            (
                "Task restarts",
                "short",
                &[(
                    Query::Rate(Metric::TaskRestarts, "instance, task"),
                    "{{instance}} {{task}}",
                )],
            ),
            (
                "Paused queues",
                "short",
                &[(Query::Max(Metric::QueuePaused, "queue"), "{{queue}}")],
            ),
            (
                "Stalled disks",
                "s",
                &[(
                    Query::Max(Metric::DiskStalled, "instance, disk"),
                    "{{instance}} {{disk}}",
                )],
            ),
        ],
    ),
    (
        "Overview",
        &[
            (
                "Requests",
                "reqps",
                &[(
                    Query::Rate(Metric::HttpRequests, "route, status"),
                    "{{route}} {{status}}",
                )],
            ),
            (
                "Time to answer, p99",
                "s",
                &[(
                    Query::P99(Metric::HttpRequestDuration, "route"),
                    "{{route}}",
                )],
            ),
            (
                "Backends that answer",
                "short",
                &[(
                    Query::Max(Metric::BackendUp, "instance, backend"),
                    "{{instance}} {{backend}}",
                )],
            ),
            (
                "Refused and evicted connections",
                "short",
                &[
                    (
                        Query::Rate(Metric::RefusedConnections, "listener, reason"),
                        "{{listener}} {{reason}}",
                    ),
                    (
                        Query::Rate(Metric::EvictedConnections, "listener"),
                        "{{listener}} evicted",
                    ),
                ],
            ),
            (
                "CPU",
                "short",
                &[(Query::Rate(Metric::ProcessCpu, "instance"), "{{instance}}")],
            ),
            (
                "Memory",
                "bytes",
                &[(
                    Query::Max(Metric::ProcessMemory, "instance"),
                    "{{instance}}",
                )],
            ),
            (
                "Open files",
                "short",
                &[(
                    Query::Max(Metric::ProcessOpenFds, "instance"),
                    "{{instance}}",
                )],
            ),
            (
                "Free disk space",
                "bytes",
                &[(
                    Query::Max(Metric::DiskFree, "instance, folder"),
                    "{{instance}} {{folder}}",
                )],
            ),
        ],
    ),
    (
        "Queues",
        &[
            (
                "Ready",
                "short",
                &[(Query::Max(Metric::QueueReady, "queue"), "{{queue}}")],
            ),
            (
                "Oldest ready message",
                "s",
                &[(
                    Query::Max(Metric::QueueOldestReadyAge, "queue"),
                    "{{queue}}",
                )],
            ),
            (
                "Longest lease",
                "s",
                &[(
                    Query::Max(Metric::QueueOldestLeasedAge, "queue"),
                    "{{queue}}",
                )],
            ),
            (
                "Oldest delayed message",
                "s",
                &[(
                    Query::Max(Metric::QueueOldestDelayedAge, "queue"),
                    "{{queue}}",
                )],
            ),
            (
                "Delayed and leased",
                "short",
                &[
                    (
                        Query::Max(Metric::QueueDelayed, "queue"),
                        "{{queue}} delayed",
                    ),
                    (Query::Max(Metric::QueueLeased, "queue"), "{{queue}} leased"),
                ],
            ),
            (
                "Retries, duplicates and drops",
                "short",
                &[
                    (Query::Rate(Metric::Retried, "queue"), "{{queue}} retried"),
                    (
                        Query::Rate(Metric::Duplicates, "queue"),
                        "{{queue}} duplicates",
                    ),
                    (Query::Rate(Metric::Dropped, "queue"), "{{queue}} dropped"),
                ],
            ),
            (
                "Enqueued and acked",
                "short",
                &[
                    (Query::Rate(Metric::Enqueued, "queue"), "{{queue}} enqueued"),
                    (Query::Rate(Metric::Acked, "queue"), "{{queue}} acked"),
                ],
            ),
            (
                "Deliveries",
                "short",
                &[(
                    Query::Rate(Metric::Deliveries, "queue, outcome"),
                    "{{queue}} {{outcome}}",
                )],
            ),
            (
                "End-to-end latency, p99",
                "s",
                &[(Query::P99(Metric::EndToEnd, "queue"), "{{queue}}")],
            ),
            (
                "Dead letters",
                "short",
                &[(Query::Max(Metric::QueueDead, "queue"), "{{queue}}")],
            ),
        ],
    ),
    (
        "Streams",
        &[
            (
                "Lag",
                "short",
                &[(
                    Query::Max(Metric::StreamLag, "stream, group"),
                    "{{stream}} {{group}}",
                )],
            ),
            (
                "Pending entries",
                "short",
                &[(
                    Query::Max(Metric::StreamPending, "stream, group"),
                    "{{stream}} {{group}}",
                )],
            ),
            (
                "Oldest entry",
                "s",
                &[(
                    Query::Max(Metric::StreamOldestAge, "stream, group"),
                    "{{stream}} {{group}}",
                )],
            ),
            (
                "Lines",
                "short",
                &[
                    (
                        Query::Rate(Metric::LinesRead, "instance"),
                        "{{instance}} read",
                    ),
                    (
                        Query::Rate(Metric::LinesWritten, "instance"),
                        "{{instance}} written",
                    ),
                ],
            ),
            (
                "Line bytes",
                "Bps",
                &[
                    (
                        Query::Rate(Metric::LineBytesRead, "instance"),
                        "{{instance}} read",
                    ),
                    (
                        Query::Rate(Metric::LineBytesWritten, "instance"),
                        "{{instance}} written",
                    ),
                ],
            ),
            (
                "Input",
                "bytes",
                &[
                    (Query::Max(Metric::InputRead, "input"), "{{input}} read"),
                    (Query::Max(Metric::InputSize, "input"), "{{input}} size"),
                ],
            ),
            (
                "Reader failures",
                "short",
                &[(
                    Query::Rate(Metric::LineReadFailures, "instance, cause"),
                    "{{instance}} {{cause}}",
                )],
            ),
        ],
    ),
    (
        "Orders",
        &[(
            "Orders",
            "short",
            &[(Query::Max(Metric::Orders, "state"), "{{state}}")],
        )],
    ),
    (
        "Limits",
        &[(
            "Decisions",
            "reqps",
            &[(
                Query::Rate(Metric::LimitDecisions, "limit, outcome"),
                "{{limit}} {{outcome}}",
            )],
        )],
    ),
    (
        "Outbox",
        &[
            (
                "Unsent events",
                "short",
                &[
                    (Query::Max(Metric::OutboxNew, "job"), "new"),
                    (Query::Max(Metric::OutboxFailed, "job"), "failed"),
                ],
            ),
            (
                "Oldest event",
                "s",
                &[(Query::Max(Metric::OutboxOldestAge, "job"), "oldest")],
            ),
        ],
    ),
    (
        "Fleet",
        &[
            (
                "Agents",
                "short",
                &[(Query::Max(Metric::FleetAgents, "state"), "{{state}}")],
            ),
            (
                "Configuration version",
                "short",
                &[(Query::Max(Metric::FleetVersion, "job"), "version")],
            ),
        ],
    ),
];

/// The dashboard.
pub(super) fn dashboard() -> String {
    let (mut panels, mut id, mut y) = (Vec::new(), 0, 0);
    let mut number = || {
        id += 1;
        id
    };
    for (title, row) in ROWS {
        panels.push(json!({
            "id": number(), "type": "row", "title": title, "collapsed": false,
            "gridPos": { "h": 1, "w": 24, "x": 0, "y": y },
        }));
        y += 1;
        for (place, (title, unit, queries)) in row.iter().enumerate() {
            let targets: Vec<Value> = queries
                .iter()
                .zip('A'..)
                .map(|((query, legend), name)| {
                    json!({ "refId": name.to_string(), "expr": query.text(), "legendFormat": legend,
                        "datasource": { "type": "prometheus", "uid": "${datasource}" } })
                })
                .collect();
            panels.push(json!({
                "id": number(), "type": "timeseries", "title": title,
                "datasource": { "type": "prometheus", "uid": "${datasource}" },
                "gridPos": { "h": 8, "w": 8, "x": place % 3 * 8, "y": y + place / 3 * 8 },
                "fieldConfig": { "defaults": { "unit": unit, "min": 0 }, "overrides": [] },
                "targets": targets,
            }));
        }
        y += row.len().div_ceil(3) * 8;
    }
    let dashboard = json!({
        "title": "Towpath", "uid": "towpath", "schemaVersion": 39, "version": 1, "editable": true,
        "refresh": "30s", "time": { "from": "now-1h", "to": "now" }, "tags": ["towpath"],
        "templating": { "list": [{
            "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source",
        }] },
        "panels": panels,
    });
    format!("{dashboard:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_panel_or_a_reason() {
        let shown: Vec<Metric> = ROWS
            .iter()
            .flat_map(|(_, panels)| *panels)
            .flat_map(|(_, _, queries)| *queries)
            .map(|(query, _)| match query {
                Query::Max(metric, _)
                | Query::Rate(metric, _)
                | Query::P99(metric, _)
                | Query::Share(metric, ..) => *metric,
            })
            .collect();
        for metric in Metric::ALL {
            let is_left_out = WITHOUT_PANEL.contains(&metric);
            assert_ne!(shown.contains(&metric), is_left_out, "{metric:?}");
        }
    }

    #[test]
    fn a_share_divides_by_every_outcome() {
        let share = Query::Share(Metric::Deliveries, "done|lost", "queue");
        assert_eq!(
            share.text(),
            "sum by (queue) (rate(towpath_deliveries_total{outcome!~\"done|lost\"}[$__rate_interval])) / \
             sum by (queue) (rate(towpath_deliveries_total[$__rate_interval]))"
        );
    }
}
