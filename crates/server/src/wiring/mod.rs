//! Configuration becomes backends, apps and tasks.
//!
//! Only this module and `stores` name the backends crate. Starting follows the data:
//! backends first, then the apps on them, then the listeners.

mod accounts;
mod backend_pool;
mod copy;
mod demo;
mod fleet;
mod ingest;
mod lines;
mod listener;
mod migrated;
mod orders;
mod port_owner;
mod process;
mod public;
mod queues;
mod role;
mod run;
mod stalls;

pub use crate::stores::{
    BACKENDS, Depth, FORMATS, RESTORING, STORES, Verified, open, open_database, open_migrated,
    verify_database, verify_store,
};
pub use copy::Copy;
pub use lines::host;
pub use role::Role;
pub use run::{Started, start};
