//! The promises of the queue port, by theme.

mod corners;
mod dead;
mod delivery;
mod durable;
mod intake;
mod model;
mod operate;
mod order;

use crate::Case;

/// Every case.
pub(crate) fn cases() -> Vec<Case> {
    [
        intake::cases(),
        delivery::cases(),
        order::cases(),
        dead::cases(),
        durable::cases(),
        operate::cases(),
        corners::cases(),
        model::cases(),
    ]
    .concat()
}
