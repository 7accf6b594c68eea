//! The words of Towpath: messages, ports, errors and policies.
//!
//! Read in this order: [`message`] (the data), [`port`] (the traits
//! a backend implements), [`retry`] and [`limiter`] (policy as data),
//! [`backend`] (the features of a driver). Nothing here performs I/O
//! and nothing here names a driver.

pub mod address;
pub mod attempt;
pub mod backend;
pub mod breaker;
pub mod clock;
pub mod database;
pub mod error;
pub mod id;
pub mod limiter;
pub mod log_throttle;
pub mod message;
pub mod port;
pub mod retry;
pub mod stall;
pub mod units;
pub mod wait_limit;

pub use attempt::Attempt;
pub use breaker::Breaker;
pub use clock::{Clock, ManualClock, SystemClock, Timestamp};
pub use error::{Error, ErrorKind, Result, ResultExt};
pub use id::{ConsumerId, ExchangeName, GroupName, MessageId, QueueName, StreamName};
pub use message::{Delivery, Headers, Message, NewMessage, Receipt};
