//! Telemetry of the process: metrics, logs, probes.

mod calls;
mod disk_usage;
mod lines;
mod log_writer;
mod logs;
mod metric;
mod probes;
mod process;
mod pump;
mod registry;
mod shown;
pub mod traces;
mod vitals;

pub use calls::LastCall;
pub use disk_usage::DiskUsage;
pub use lines::{LineCounters, LineMetrics};
pub use log_writer::{flush as flush_logs, hold as hold_logs};
pub use logs::{Format, init as init_logs, is_filter as is_log_filter};
pub use metric::Metric;
pub use probes::{Checked, CheckedBackend, CheckedRole, Health, Need, Phase, STALLS, Source};
pub use registry::{Metrics, RefusedConnections, listing};
pub use towpath::failures::log_failure;
pub use traces::Traces;
pub use vitals::{Deliveries, Vitals};
