//! The required scope of each route of each listener. A route that is missing here is closed.

use http::Method;

use super::scope::Needed;
use crate::documents::Part;

/// The permitted clients of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every client: probes, and descriptions of the routes.
    Open,
    /// A route of a reference system, open with `server.auth = "auto"`, because existing clients have no key.
    Contract(Needed),
    /// A route of Towpath's own. With `auto` a program of this machine needs no key.
    Own(Needed),
    /// A key, whatever `server.auth` says.
    Key(Needed),
    /// The app has keys of its own beside those of the key file, which need this scope.
    App(Needed),
}

impl Access {
    /// The scope that a key must have.
    pub const fn needed(self) -> Option<Needed> {
        match self {
            Self::Open => None,
            Self::Contract(needed) | Self::Own(needed) | Self::Key(needed) | Self::App(needed) => {
                Some(needed)
            }
        }
    }
}

impl Access {
    /// Whether requests with this method are recorded in the audit log: what changes something for others. What apps
    /// exist for, like messages, orders and tasks, is not; the fleet keeps a record of its own.
    pub fn is_audited(self, method: &Method) -> bool {
        !method.is_safe()
            && match self {
                Self::Open | Self::Contract(_) | Self::App(_) => false,
                Self::Own(needed) => needed != Needed::new("ingest", "write"),
                // The traffic of producers and workers.
                Self::Key(needed) => ![queue_verb("write"), queue_verb("lease")].contains(&needed),
            }
    }
}

/// A method on a route.
pub(super) type Row = (&'static str, &'static str, Access);

const fn contract(resource: &'static str, verb: &'static str) -> Access {
    Access::Contract(Needed::new(resource, verb))
}

const fn own(resource: &'static str, verb: &'static str) -> Access {
    Access::Own(Needed::new(resource, verb))
}

const fn app(resource: &'static str, verb: &'static str) -> Access {
    Access::App(Needed::new(resource, verb))
}

const fn key(resource: &'static str, verb: &'static str) -> Access {
    Access::Key(Needed::new(resource, verb))
}

const fn queue(verb: &'static str) -> Access {
    Access::Key(queue_verb(verb))
}

const fn queue_verb(verb: &'static str) -> Needed {
    Needed::named("queue", verb)
}

const ADMIN: Access = Access::Key(Needed::admin());

/// Routes that every listener has.
const EVERYWHERE: &[Row] = &[
    ("GET", "/", Access::Open),
    ("GET", "/openapi.json", Access::Open),
];

const INGEST: &[Row] = &[
    ("POST", "/enqueue", contract("ingest", "write")),
    ("POST", "/enqueue/batch", own("ingest", "write")),
    ("GET", "/healthz", Access::Open),
];

const ORDERS: &[Row] = &[("POST", "/orders", contract("orders", "write"))];

const STOCK: &[Row] = &[
    ("GET", "/orders/{id}", own("orders", "read")),
    ("GET", "/inventory", own("inventory", "read")),
    ("GET", "/inventory/{sku}", own("inventory", "read")),
    ("PUT", "/inventory/{sku}", own("inventory", "write")),
    ("PATCH", "/inventory/{sku}", own("inventory", "write")),
];

const DASHBOARD: &[Row] = &[("GET", "/metrics", contract("metrics", "read"))];

const LINES: &[Row] = &[
    ("GET", "/healthz", Access::Open),
    ("GET", "/metrics", contract("metrics", "read")),
];

const ACCOUNTS: &[Row] = &[
    ("GET", "/api/bucket/check", contract("limits", "read")),
    ("POST", "/api/bucket/consume", contract("limits", "consume")),
    (
        "POST",
        "/api/bucket/bulk-consume",
        contract("limits", "consume"),
    ),
    ("POST", "/api/bucket/reset", own("limits", "reset")),
    ("POST", "/api/users", contract("users", "write")),
    ("GET", "/api/users", own("users", "read")),
    ("GET", "/api/users/{id}", contract("users", "read")),
    ("PUT", "/api/users/{id}", contract("users", "write")),
    ("DELETE", "/api/users/{id}", own("users", "write")),
    ("POST", "/api/test/crash", contract("users", "write")),
    ("GET", "/health", Access::Open),
    ("GET", "/health/bucket", Access::Open),
    ("GET", "/health/users", Access::Open),
];

const CONTROLLER: &[Row] = &[
    ("GET", "/agents", app("fleet", "read")),
    ("DELETE", "/agents/{id}", app("fleet", "publish")),
    ("POST", "/agents/{id}/report", app("fleet", "enroll")),
    ("GET", "/audit", app("fleet", "read")),
    ("GET", "/config", app("fleet", "read")),
    ("POST", "/config", app("fleet", "publish")),
    ("GET", "/config/diff", app("fleet", "read")),
    ("GET", "/config/history", app("fleet", "read")),
    ("POST", "/config/restore", app("fleet", "publish")),
    ("POST", "/config/rollback", app("fleet", "publish")),
    ("GET", "/config/{version}", app("fleet", "read")),
    ("POST", "/register", app("fleet", "enroll")),
    ("GET", "/rollout", app("fleet", "read")),
    ("POST", "/rollout/stop", app("fleet", "publish")),
];

const WORKER: &[Row] = &[
    ("GET", "/config", app("worker", "read")),
    ("POST", "/config", app("worker", "configure")),
    // It starts a task, as in the reference system.
    ("GET", "/hit", app("tasks", "write")),
    ("POST", "/hit", app("tasks", "write")),
    ("GET", "/hit/{id}", app("tasks", "read")),
    ("DELETE", "/hit/{id}", app("tasks", "write")),
    ("GET", "/hits", app("tasks", "read")),
];

/// Routes of the admin listener.
const ADMIN_ROUTES: &[Row] = &[
    ("GET", "/livez", Access::Open),
    ("GET", "/readyz", Access::Open),
    ("GET", "/readyz/{role}", Access::Open),
    ("GET", "/metrics", contract("metrics", "read")),
    ("GET", "/ui/{file}", Access::Open),
    ("POST", "/v1/backup", ADMIN),
    (
        "GET",
        "/v1/health",
        Access::Key(Needed::new("metrics", "read")),
    ),
    (
        "GET",
        "/v1/problems",
        Access::Key(Needed::new("metrics", "read")),
    ),
    ("POST", "/v1/doctor", ADMIN),
    ("GET", "/v1/fleet/agents", key("fleet", "read")),
    ("GET", "/v1/fleet/audit", key("fleet", "read")),
    ("GET", "/v1/fleet/config", key("fleet", "read")),
    ("POST", "/v1/fleet/config", key("fleet", "publish")),
    ("GET", "/v1/fleet/config/diff", key("fleet", "read")),
    ("GET", "/v1/fleet/config/history", key("fleet", "read")),
    ("POST", "/v1/fleet/config/rollback", key("fleet", "publish")),
    ("GET", "/v1/fleet/config/{version}", key("fleet", "read")),
    ("GET", "/v1/fleet/rollout", key("fleet", "read")),
    ("POST", "/v1/fleet/rollout/stop", key("fleet", "publish")),
    ("GET", "/v1/kv", ADMIN),
    ("GET", "/v1/kv/{key}", ADMIN),
    ("PUT", "/v1/kv/{key}", ADMIN),
    ("DELETE", "/v1/kv/{key}", ADMIN),
    ("POST", "/v1/kv/{key}/add", ADMIN),
    (
        "GET",
        "/v1/orders/check",
        Access::Key(Needed::new("orders", "read")),
    ),
    ("GET", "/v1/outbox", ADMIN),
    ("GET", "/v1/outbox/events", ADMIN),
    ("POST", "/v1/outbox/backfill", ADMIN),
    ("POST", "/v1/outbox/replay", ADMIN),
    ("POST", "/v1/outbox/retry", ADMIN),
    ("GET", "/v1/queues", queue("read")),
    ("GET", "/v1/queues/{queue}", queue("read")),
    ("DELETE", "/v1/queues/{queue}", queue("admin")),
    ("PUT", "/v1/queues/{queue}", queue("admin")),
    ("POST", "/v1/queues/{queue}/collect", queue("admin")),
    ("GET", "/v1/queues/{queue}/dead-letters", queue("read")),
    (
        "POST",
        "/v1/queues/{queue}/dead-letters/drop",
        queue("admin"),
    ),
    (
        "POST",
        "/v1/queues/{queue}/dead-letters/redrive",
        queue("admin"),
    ),
    ("POST", REQUEUE, queue("admin")),
    ("GET", "/v1/queues/{queue}/messages", queue("read")),
    ("POST", "/v1/queues/{queue}/messages", queue("write")),
    ("POST", "/v1/queues/{queue}/messages/batch", queue("write")),
    ("POST", "/v1/queues/{queue}/extend", queue("lease")),
    ("POST", "/v1/queues/{queue}/lease", queue("lease")),
    ("POST", "/v1/queues/{queue}/settle", queue("lease")),
    ("POST", "/v1/queues/{queue}/pause", queue("admin")),
    ("POST", "/v1/queues/{queue}/purge", queue("admin")),
    ("POST", "/v1/queues/{queue}/resume", queue("admin")),
    ("GET", "/v1/session", Access::Open),
    ("POST", "/v1/session", Access::Open),
    ("DELETE", "/v1/session", Access::Open),
    ("POST", "/v1/session/code", key("metrics", "read")),
    ("GET", "/v1/streams", ADMIN),
    ("GET", "/v1/streams/{stream}", ADMIN),
    ("GET", "/v1/streams/{stream}/entries", ADMIN),
    ("POST", "/v1/streams/{stream}/trim", ADMIN),
    ("GET", "/v1/tasks", key("tasks", "read")),
    ("POST", "/v1/tasks", key("tasks", "write")),
    ("GET", "/v1/tasks/{id}", key("tasks", "read")),
    ("DELETE", "/v1/tasks/{id}", key("tasks", "write")),
];

/// The name of `redrive` in version 0.1, an alias that the OpenAPI document does not list.
const REQUEUE: &str = "/v1/queues/{queue}/dead-letters/requeue";

/// The routes of one part of a listener.
const fn of(part: Part) -> &'static [Row] {
    match part {
        Part::Ingest => INGEST,
        Part::Orders => ORDERS,
        Part::Stock => STOCK,
        Part::Dashboard => DASHBOARD,
        Part::Lines => LINES,
        Part::Accounts => ACCOUNTS,
        Part::Controller => CONTROLLER,
        Part::Worker => WORKER,
    }
}

/// The routes of a listener.
#[derive(Debug, Clone, Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// The routes of these parts.
    pub fn of(parts: &[Part]) -> Self {
        let own = parts.iter().flat_map(|part| of(*part));
        Self(own.chain(EVERYWHERE).copied().collect())
    }

    /// The routes of the admin listener.
    pub fn admin() -> Self {
        Self(ADMIN_ROUTES.iter().chain(EVERYWHERE).copied().collect())
    }

    /// The permitted clients of a route with this method; `None` when it is not listed.
    pub fn find(&self, method: &Method, route: &str) -> Option<Access> {
        // RFC 9110, section 9.3.2: `HEAD` is `GET` without the body.
        let method = match *method {
            Method::HEAD => "GET",
            _ => method.as_str(),
        };
        let mut rows = self.0.iter();
        let row = rows.find(|(own, at, _)| *own == method && *at == route);
        row.map(|(_, _, access)| *access)
    }

    /// Whether the route is one of a reference system.
    pub fn is_contract(&self, route: &str) -> bool {
        let mut rows = self.0.iter();
        rows.any(|(_, at, access)| *at == route && matches!(access, Access::Contract(_)))
    }

    /// Whether one of the routes has this template.
    pub fn has(&self, route: &str) -> bool {
        self.0.iter().any(|(_, at, _)| *at == route)
    }

    /// The number of routes whose access is like this.
    pub fn count(&self, is_like: impl Fn(Access) -> bool) -> usize {
        self.0
            .iter()
            .filter(|(_, _, access)| is_like(*access))
            .count()
    }

    /// The methods of a route, as `Allow` has them.
    pub fn methods(&self, route: &str) -> String {
        let rows = self.0.iter().filter(|(_, at, _)| *at == route);
        let methods = rows.map(|(method, ..)| match *method {
            "GET" => "GET,HEAD",
            method => method,
        });
        methods.collect::<Vec<_>>().join(",")
    }

    #[cfg(test)]
    pub(super) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::scope::RESOURCES;
    use super::*;
    use crate::documents::document;

    fn documented(document: &serde_json::Value) -> BTreeSet<(String, String)> {
        let paths = document["paths"].as_object().expect("paths");
        let all = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("operations").keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        });
        all.collect()
    }

    fn listed(table: &Table) -> BTreeSet<(String, String)> {
        let rows = table.0.iter();
        rows.map(|(method, route, _)| ((*method).to_owned(), (*route).to_owned()))
            .collect()
    }

    const LISTENERS: [(&str, &[Part]); 5] = [
        (
            "Public listener, `server.listen`",
            &[Part::Ingest, Part::Orders, Part::Stock, Part::Accounts],
        ),
        (
            "Dashboard of orders, `orders.dashboard.listen`",
            &[Part::Dashboard, Part::Stock],
        ),
        (
            "Public listener of a process with lines alone, `server.listen`",
            &[Part::Lines],
        ),
        (
            "Fleet controller, `fleet.controller.listen`",
            &[Part::Controller],
        ),
        ("Fleet worker, `fleet.worker.listen`", &[Part::Worker]),
    ];

    #[test]
    fn every_documented_route_has_a_scope() {
        let parts = LISTENERS
            .iter()
            .flat_map(|(_, parts)| parts.iter().copied());
        for part in parts {
            let documented = documented(&document("Towpath", &[part]));
            assert_eq!(listed(&Table::of(&[part])), documented, "{part:?}");
        }
        let mut documented = documented(&crate::admin::document());
        documented.insert(("POST".to_owned(), REQUEUE.to_owned()));
        assert_eq!(listed(&Table::admin()), documented);
    }

    #[test]
    fn every_scope_permits_a_route() {
        let parts = LISTENERS
            .iter()
            .flat_map(|(_, parts)| parts.iter().copied());
        let parts: Vec<_> = parts.collect();
        let tables = [Table::of(&parts), Table::admin()];
        let rows = tables.iter().flat_map(Table::rows);
        let needed: Vec<_> = rows.filter_map(|(.., access)| access.needed()).collect();
        for (resource, is_named, verbs) in RESOURCES {
            for verb in verbs {
                let scope = match is_named {
                    true => Needed::named(resource, verb),
                    false => Needed::new(resource, verb),
                };
                assert!(needed.contains(&scope), "{scope} permits nothing");
            }
        }
    }

    /// The page of routes and scopes.
    fn page() -> String {
        let mut page = String::from(
            "# Routes and scopes\n\nGenerated from the table that every listener checks. [security.md](../security.md) explains the columns.\n",
        );
        let tables = LISTENERS
            .iter()
            .map(|(title, parts)| (*title, Table::of(parts)))
            .chain([("Admin listener, `server.admin`", Table::admin())]);
        for (title, table) in tables {
            page.push_str(&format!(
                "\n## {title}\n\n| route | scope | without a key, `server.auth = \"auto\"` |\n| --- | --- | --- |\n"
            ));
            for (method, route, access) in table.0 {
                let scope = match access.needed() {
                    Some(needed) => format!("`{needed}`"),
                    None => "none".to_owned(),
                };
                let open = match access {
                    Access::Open => "any client, in every mode",
                    Access::Contract(_) => "any client",
                    Access::Own(_) => "programs of this machine",
                    Access::Key(_) => "refused, in every mode",
                    Access::App(_) => "the app's own keys",
                };
                page.push_str(&format!("| `{method} {route}` | {scope} | {open} |\n"));
            }
        }
        page
    }

    #[test]
    fn page_of_scopes_is_the_table() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/scopes.md"
        );
        if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, page(), "run with TOWPATH_UPDATE_DOCS=1");
    }
}
