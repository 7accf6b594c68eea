//! The ports: small traits whose documentation is the promise that the
//! conformance suite in `towpath-testkit` checks on every backend.
//!
//! A method takes a batch; a single is a batch of one. A feature that a backend lacks
//! answers `Unsupported`, never an imitation.

pub mod effects;
pub mod fleet;
pub mod kv;
pub mod outbox;
pub mod queue;
pub mod rate_limit;
pub mod routes;
pub mod sink;
pub mod source_offsets;
pub mod stream;
pub mod users;

pub use effects::Effects;
pub use fleet::Fleet;
pub use kv::Kv;
pub use outbox::Outbox;
pub use queue::Queue;
pub use rate_limit::RateLimit;
pub use routes::Routes;
pub use sink::Sink;
pub use source_offsets::SourceOffsets;
pub use stream::Stream;
pub use users::Users;
