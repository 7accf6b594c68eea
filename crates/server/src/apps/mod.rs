//! The apps: the promises of each group of roles, on top of the ports.

pub mod accounts;
pub mod fleet;
pub mod ingest;
pub mod lines;
pub mod orders;

/// The routes of the public listener, whichever roles of a process add them.
pub const PUBLIC_ROUTES: [&str; 20] = [
    "/",
    "/api/bucket/bulk-consume",
    "/api/bucket/check",
    "/api/bucket/consume",
    "/api/bucket/reset",
    "/api/test/crash",
    "/api/users",
    "/api/users/{id}",
    "/enqueue",
    "/enqueue/batch",
    "/health",
    "/health/bucket",
    "/health/users",
    "/healthz",
    "/inventory",
    "/inventory/{sku}",
    "/metrics",
    "/openapi.json",
    "/orders",
    "/orders/{id}",
];
