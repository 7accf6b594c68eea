//! Accounts: limits that callers share over HTTP, users, and the events that tell of them.
//!
//! ```text
//! POST /api/bucket/consume -> Limiter -- named rule --> RateLimit port (the store's clock)
//!                                |
//!                                +-- store away --> refuse | allow | decide here, as the rule says
//!
//! POST /api/users -> one transaction: user + event in the outbox -- Relay, in order --> stream
//! ```

mod event;
mod health;
mod limiter;
mod limits;
mod rate_limit;
mod rule;
mod users;

pub use health::{HealthDeps, health_routes};
pub use limiter::Limiter;
pub use limits::{LIMIT_FORMS, limit_queries, limit_routes};
pub use rate_limit::{RateLimitLayer, is_route_limit, limited, limited_route};
pub use rule::{OnFailure, Rule, Rules};
pub use users::{UserApi, user_queries, user_routes};
