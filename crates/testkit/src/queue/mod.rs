//! The promises of the queue port, by theme.

mod admin;
mod dead;
mod delivery;
mod durability;
mod edge_cases;
mod enqueue;
mod model;
mod order;

use crate::Case;

/// Every case.
pub(crate) fn cases() -> Vec<Case> {
    [
        enqueue::cases(),
        delivery::cases(),
        order::cases(),
        dead::cases(),
        durability::cases(),
        admin::cases(),
        edge_cases::cases(),
        model::cases(),
    ]
    .concat()
}
