//! Orders: a POST becomes stock taken, an event, and one notification.
//!
//! ```text
//! POST /orders -> Gateway -> orders.direct -> orders.queue -> pump -> Processor -> orders.topic
//!                                                                                     |
//!                    log | smtp | webhook <- Notifier <- pump <- notifier.queue <-----+ order.created
//! ```
//!
//! An order's record (`order:<id>`) moves `reserved -> accepted -> processed | rejected`, and every step that
//! counts something moves the record in the same atomic step. So a step that is done twice is done once, and
//! accepted = processed + rejected + in flight + dead holds at any moment. Where keys and queues share a store,
//! the messages and the ack are in that step as well; elsewhere the record tells a repeat from a first time.

mod api;
mod channel;
mod dashboard;
mod gateway;
mod notifier;
mod order;
mod processor;
mod reconciliation;
mod record;
mod store;
mod topology;

pub use api::{gateway_routes, stock_queries, stock_routes};
pub use channel::{Channel, Mailer};
pub(crate) use channel::{is_mail_address, is_mail_url};
pub use dashboard::{Dashboard, queries as dashboard_queries, routes as dashboard_routes};
pub use gateway::Gateway;
pub use notifier::Notifier;
pub use processor::Processor;
pub use reconciliation::{Balance, Reconciliation};
pub use store::OrderStore;
pub use topology::{NOTIFICATIONS, ORDERS, REJECTIONS, Topology};

/// Counter of orders whose acceptance is certain.
const ACCEPTED_COUNT: &str = "orders.accepted.count";
/// Counter of orders whose stock was taken. The name is the reference system's.
const PROCESSED_COUNT: &str = "orders.processed.count";
/// Counter of orders that were rejected as out of stock.
const REJECTED_COUNT: &str = "orders.rejected.count";
/// Counter of orders whose customer was notified.
const NOTIFIED_COUNT: &str = "orders.notified.count";

/// Before a SKU: its stock, a whole number.
const INVENTORY: &str = "inventory:";
/// Before an order id: its record.
const ORDER: &str = "order:";
