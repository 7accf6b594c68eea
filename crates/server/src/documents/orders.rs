//! `orders.gateway` and `orders.dashboard`.

use serde_json::{Value, json};

use super::operation::{
    Operation, between, boolean, integer, list, nullable, object, reference, string, time,
};

const TAG: &str = "orders";

pub(super) fn gateway() -> Vec<Operation> {
    let order = object(&[
        ("id", string()),
        ("sku", string()),
        ("qty", integer(1)),
        ("email?", string()),
    ]);
    vec![
        Operation::new("post", "/orders", "placeOrder", TAG, "Place an order")
            .header(
                "traceparent",
                "The trace that the order belongs to (W3C Trace Context).",
            )
            .json(order)
            .answers_text(202, "The order is durable and will be processed")
            .refuses(&[(409, "The id was used before, for this order or another")]),
    ]
}

pub(super) fn stock() -> Vec<Operation> {
    let stock = || reference("Stock");
    let sku = "/inventory/{sku}";
    vec![
        Operation::new(
            "get",
            "/orders/{id}",
            "showOrder",
            TAG,
            "Show an order and its history",
        )
        .answers_json(200, "The order", reference("Order"))
        .refuses(&[(404, "There is no such order")]),
        Operation::new("get", "/inventory", "listStock", TAG, "List stock by SKU")
            .query(
                "max",
                between(1, 1_000),
                "Maximum SKUs of a page [default: 100].",
            )
            .query("after", string(), "Last SKU of the previous page.")
            .answers_json(200, "A page", list(stock())),
        Operation::new("get", sku, "showStock", TAG, "Show the stock of a SKU")
            .answers_json(200, "The stock", stock())
            .refuses(&[(404, "The SKU is unknown")]),
        Operation::new("put", sku, "setStock", TAG, "Set the stock of a SKU")
            .json(object(&[("quantity", integer(0))]))
            .answers_json(200, "The stock as it is now", stock()),
        Operation::new(
            "patch",
            sku,
            "changeStock",
            TAG,
            "Add to the stock of a SKU, or take from it",
        )
        .json(object(&[("delta", json!({ "type": "integer" }))]))
        .answers_json(200, "The stock as it is now", stock())
        .refuses(&[(409, "There is not as much of it")]),
    ]
}

pub(super) fn dashboard() -> Vec<Operation> {
    vec![
        Operation::new(
            "get",
            "/metrics",
            "orderNumbers",
            TAG,
            "Counts, rates and queues of the app",
        )
        .query("sku", string(), "Adds `inventory_level` of this SKU.")
        .query(
            "order_id",
            string(),
            "Adds `notification_status` of this order.",
        )
        .answers_json(
            200,
            "The numbers; a format of Prometheus for clients that accept one",
            json!({ "type": "object" }),
        ),
    ]
}

pub(super) fn schemas() -> Value {
    json!({
        "Stock": object(&[("sku", string()), ("quantity", integer(0))]),
        "Order": object(&[
            ("id", string()), ("sku", string()), ("qty", integer(1)), ("state", string()),
            ("reason", nullable(string())), ("notified", boolean()), ("attempts", integer(0)),
            ("notification", json!({ "type": "object" })),
            ("history", list(object(&[("at", time()), ("what", string())]))),
        ]),
    })
}
