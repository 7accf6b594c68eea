//! Fleet: one configuration for many agents, and HTTP tasks with results.
//!
//! ```text
//! POST /config -> Controller -- version in the database --> everyone who waits on GET /config
//!                     ^                                                  |
//!                     +-- applied | failed -- Agent <--------------------+
//!                                               |
//!                                               +-- POST /config --> Worker, on disk
//!
//! GET /hit -> Worker: record + message in one step -> queue -> hit -> record + message -> queue -> callback
//! ```

mod agent;
mod agent_client;
mod agent_routes;
mod auth;
mod callbacks;
mod config;
mod controller;
mod controller_routes;
mod destinations;
mod envelope;
mod identity;
mod proof;
mod rollout;
mod task;
mod task_runner;
mod worker;
mod worker_routes;

pub use agent::{Agent, AgentProfile};
pub use auth::{DEFAULT_KEY, KEY_FILE, Keys, kept_key};
pub use callbacks::{CALLBACK_QUEUE, Callbacks};
pub use controller::Controller;
pub use controller_routes::{controller_queries, controller_routes};
pub use destinations::Destinations;
pub use proof::PublicKey;
pub use task::Tasks;
pub use task_runner::{Limits, TASK_QUEUE, TaskRunner};
pub use worker::Worker;
pub use worker_routes::{Entry, worker_queries, worker_routes};
