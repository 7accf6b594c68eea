//! Configuration: one table of keys, from which everything else follows.
//!
//! Precedence: flag, then `TOWPATH_SECTION__KEY`, then the reference systems'
//! variable, then `towpath.toml`, then the default. A file `.env` adds to the environment. Every problem is reported at once, with its place.

mod access;
mod accounts;
#[cfg(test)]
mod broken_test;
mod check;
mod dotenv;
mod file;
mod fleet;
mod key;
mod kind;
mod lines;
mod load;
mod model;
mod orders;
mod platform;
mod problem;
mod queues;
#[cfg(test)]
mod reference_test;
mod secret;
mod show;
mod source_span;
mod strength;
mod suggest;
mod traces;
mod variables;

#[cfg(test)]
mod tests;

pub use accounts::Accounts;
pub use fleet::Fleet;
pub use key::{KEYS, Key};
pub use kind::{Kind, Stores};
pub(crate) use kind::{duration, show_millis};
pub use lines::Lines;
pub(crate) use load::on_loopback;
pub use load::{Loaded, OfFolder, Setting, Sources, load};
pub use model::{Config, SinkKind};
pub use orders::{ChannelKind, Orders};
pub use problem::{Problem, Problems};
pub use secret::Secret;
pub use show::{commented_file, json_schema, origins_table, reference_page};
pub use source_span::{Origin, SourceSpan};
pub(crate) use suggest::did_you_mean;
pub use traces::Traces;
pub(crate) use variables::REFERENCE;
