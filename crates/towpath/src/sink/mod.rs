//! Sinks: where messages leave. Each says in its own file what "done" means there.

mod command;
mod escape;
mod file;
mod lines;
mod webhook;

pub use command::CommandSink;
pub use escape::{escape, unescape};
pub use file::FileSink;
pub use lines::LineSink;
pub use webhook::WebhookSink;
