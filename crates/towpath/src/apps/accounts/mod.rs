//! Accounts: limits that callers share over HTTP.
//!
//! ```text
//! POST /api/bucket/consume -> Limiter -- named rule --> RateLimit port (the store's clock)
//!                                |
//!                                +-- store away --> refuse | allow | decide here, as the rule says
//! ```

mod api;
mod limiter;
mod rule;

pub use api::routes;
pub use limiter::Limiter;
pub use rule::{OnFailure, Rule, Rules};
