//! Metrics of the lines app.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::metric::Metric;
use super::registry::{add, set};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Input {
    input: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

/// Lines, and their bytes with a newline for each.
#[derive(Debug, Clone, Default)]
pub struct LineCounters {
    lines: Counter,
    bytes: Counter,
}

impl LineCounters {
    /// Counts lines of these lengths, which are without the newline.
    pub fn add(&self, lengths: impl Iterator<Item = u64>) {
        let (lines, bytes) = lengths.fold((0, 0), |(lines, bytes), length| {
            (lines + 1, bytes + length + 1)
        });
        self.lines.inc_by(lines);
        self.bytes.inc_by(bytes);
    }

    /// Number of lines.
    pub fn lines(&self) -> u64 {
        self.lines.get()
    }
}

/// A cheap handle to the metrics of the reader and the writer.
#[derive(Clone, Default)]
pub struct LineMetrics {
    /// Lines that the reader sent.
    pub read: LineCounters,
    /// Lines that the writer wrote and committed.
    pub written: LineCounters,
    failures: Family<Cause, Counter>,
    input_read: Family<Input, Gauge>,
    input_size: Family<Input, Gauge>,
}

impl LineMetrics {
    /// Position in an input file, in bytes.
    pub fn input(&self, input: &str, read: u64, size: u64) {
        let labels = Input {
            input: input.to_owned(),
        };
        for (family, bytes) in [(&self.input_read, read), (&self.input_size, size)] {
            set(family, &labels, bytes);
        }
    }

    /// No file is at this input any more.
    pub fn input_gone(&self, input: &str) {
        let labels = Input {
            input: input.to_owned(),
        };
        for family in [&self.input_read, &self.input_size] {
            family.remove(&labels);
        }
    }

    /// The input could not be read.
    pub fn input_failed(&self) {
        self.failed("input");
    }

    /// The backend took no lines, or did not say how far the input was.
    pub fn backend_failed(&self) {
        self.failed("backend");
    }

    fn failed(&self, cause: &'static str) {
        self.failures.get_or_create(&Cause { cause }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        for (metric, counter) in [
            (Metric::LinesRead, &self.read.lines),
            (Metric::LinesWritten, &self.written.lines),
            (Metric::LineBytesRead, &self.read.bytes),
            (Metric::LineBytesWritten, &self.written.bytes),
        ] {
            add(registry, metric, counter.clone());
        }
        add(registry, Metric::LineReadFailures, self.failures.clone());
        add(registry, Metric::InputRead, self.input_read.clone());
        add(registry, Metric::InputSize, self.input_size.clone());
    }
}
