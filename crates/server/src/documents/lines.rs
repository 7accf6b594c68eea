//! `lines.reader` and `lines.writer`.

use super::operation::Operation;

const TAG: &str = "lines";

pub(super) fn routes() -> Vec<Operation> {
    vec![
        Operation::new(
            "get",
            "/healthz",
            "linesHealth",
            TAG,
            "Health of the reader and writer",
        )
        .answers_text(200, "`OK`")
        .answers_text(
            503,
            "The stream is unavailable, or the output cannot be written",
        ),
        Operation::new(
            "get",
            "/metrics",
            "linesMetrics",
            TAG,
            "Metrics for Prometheus",
        )
        .answers_text(
            200,
            "The text format, or OpenMetrics for clients that accept it",
        ),
    ]
}
