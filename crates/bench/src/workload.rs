//! The named workloads of a comparison.

use clap::ValueEnum;

/// A load and its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// 1 caller publishes, one message in flight
    #[value(name = "publish-1")]
    Publish1,
    /// 64 callers publish, each with one message in flight
    #[value(name = "publish-64")]
    Publish64,
    /// 1,024 callers publish, each with one message in flight
    #[value(name = "publish-1024")]
    Publish1024,
    /// 64 callers publish batches of 16
    #[value(name = "batch-16")]
    Batch16,
    /// 64 callers publish one message, lease one and ack it, one step after the other
    #[value(name = "cycle-64")]
    Cycle64,
    /// 64 callers publish while one worker leases and acks up to 100 at once
    #[value(name = "end-to-end")]
    EndToEnd,
    /// 64 connections post one message a request
    #[value(name = "http-64")]
    Http64,
    /// 1,024 connections post one message a request
    #[value(name = "http-1024")]
    Http1024,
    /// 64 connections post NDJSON batches of 100
    #[value(name = "http-batch")]
    HttpBatch,
}

/// The calls of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Publish,
    Cycle,
    HandOver,
    Http,
}

impl Workload {
    /// As it is written on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// How, with how many callers or connections, with how many messages in a call.
    pub(crate) const fn shape(self) -> (Kind, usize, usize) {
        match self {
            Self::Publish1 => (Kind::Publish, 1, 1),
            Self::Publish64 => (Kind::Publish, 64, 1),
            Self::Publish1024 => (Kind::Publish, 1024, 1),
            Self::Batch16 => (Kind::Publish, 64, 16),
            Self::Cycle64 => (Kind::Cycle, 64, 1),
            Self::EndToEnd => (Kind::HandOver, 64, 1),
            Self::Http64 => (Kind::Http, 64, 1),
            Self::Http1024 => (Kind::Http, 1024, 1),
            Self::HttpBatch => (Kind::Http, 64, 100),
        }
    }
}
