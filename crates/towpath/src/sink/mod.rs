//! Sinks: where messages leave. Each says in its own file what "done" means there.

mod command;
mod environment;
mod escape;
mod file;
mod line;
mod stdout;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "webhook")]
mod webhook;

pub use command::{CommandSink, VARIABLE_PREFIX};
pub use escape::{escape, unescape};
pub use file::{FileSink, Rotation};
pub use line::LineFormat;
pub use stdout::LineSink;
#[cfg(feature = "webhook")]
pub use webhook::WebhookSink;
#[cfg(feature = "webhook")]
pub use webhook::{is_signing_secret, key as signing_key, post, sign, unanswered};
