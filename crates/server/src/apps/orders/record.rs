//! The record of an order: the value at `order:<id>`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result, Timestamp};

use super::order::Order;

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// A gateway is about to publish it; it was not acknowledged.
    Reserved,
    /// It is on its way to a processor, and counted.
    Accepted,
    /// Its stock was taken.
    Processed,
    /// It was rejected.
    Rejected,
}

/// One line of an order's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) at: String,
    pub(super) what: String,
}

/// The record of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) order: Order,
    pub(super) hash: String,
    pub(super) state: State,
    /// While reserved: when another gateway may take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reserved_until: Option<Timestamp>,
    /// Why it was rejected, or why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// Deliveries to a processor.
    #[serde(default)]
    pub(super) attempts: u32,
    pub(super) history: Vec<Step>,
}

impl Record {
    pub(super) fn new(order: &Order, state: State, now: Timestamp) -> Self {
        let mut record = Self {
            order: order.clone(),
            hash: order.hash(),
            state,
            reserved_until: None,
            reason: None,
            attempts: 0,
            history: Vec::new(),
        };
        if state != State::Reserved {
            record.note(now, "accepted");
        }
        record
    }

    /// The record that a stored value is.
    pub(super) fn read(id: &str, stored: &[u8]) -> Result<Self> {
        serde_json::from_slice(stored).map_err(|error| {
            Error::corrupt(format!("the record of order `{id}` cannot be read")).with_source(error)
        })
    }

    pub(super) fn write(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("texts and numbers are always JSON")
            .into()
    }

    pub(super) fn note(&mut self, now: Timestamp, what: impl Into<String>) {
        self.history.push(Step {
            at: now.to_string(),
            what: what.into(),
        });
    }

    /// Accepted from now on.
    pub(super) fn accept(&mut self, now: Timestamp) {
        self.state = State::Accepted;
        self.reserved_until = None;
        self.note(now, "accepted");
    }
}
