//! Roles: the parts that a process can run, by name.

use std::fmt;

use towpath_core::{Error, Result};

use crate::config::did_you_mean;

/// One thing a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `POST /enqueue` and its health check.
    IngestApi,
    /// Hands queued messages to the sink.
    IngestWorker,
    /// `POST /orders`.
    OrdersGateway,
    /// Takes stock for orders.
    OrdersProcessor,
    /// Tells customers.
    OrdersNotifier,
    /// The numbers of the orders app.
    OrdersDashboard,
    /// Sends the lines of a file.
    LinesReader,
    /// Writes the lines of a stream.
    LinesWriter,
    /// Limits and users over HTTP.
    AccountsApi,
    /// Hands events of users to a broker.
    AccountsRelay,
    /// The configuration of many agents.
    FleetController,
    /// Brings the configuration to workers.
    FleetAgent,
    /// HTTP tasks with results.
    FleetWorker,
}

/// Role, its name, the bare name of the reference process, description.
const ROLES: &[(Role, &str, &str, &str)] = &[
    (
        Role::IngestApi,
        "ingest.api",
        "api",
        "accepts messages over HTTP",
    ),
    (
        Role::IngestWorker,
        "ingest.worker",
        "worker",
        "hands messages to the sink, a file by default",
    ),
    (
        Role::OrdersGateway,
        "orders.gateway",
        "gateway",
        "accepts orders over HTTP",
    ),
    (
        Role::OrdersProcessor,
        "orders.processor",
        "processor",
        "takes stock for orders, or rejects them",
    ),
    (
        Role::OrdersNotifier,
        "orders.notifier",
        "notifier",
        "tells customers: log, mail or webhook",
    ),
    (
        Role::OrdersDashboard,
        "orders.dashboard",
        "dashboard",
        "shows the numbers of the orders app",
    ),
    (
        Role::LinesReader,
        "lines.reader",
        "reader",
        "sends the lines of a file to a stream",
    ),
    (
        Role::LinesWriter,
        "lines.writer",
        "writer",
        "writes the lines of a stream to a file",
    ),
    (
        Role::AccountsApi,
        "accounts.api",
        "unified-server",
        "serves users and rate limits over HTTP",
    ),
    (
        Role::AccountsRelay,
        "accounts.relay",
        "relay",
        "publishes outbox events to a broker",
    ),
    (
        Role::FleetController,
        "fleet.controller",
        "controller",
        "publishes configurations and tracks agents",
    ),
    (
        Role::FleetAgent,
        "fleet.agent",
        "agent",
        "applies the configuration to its workers",
    ),
    (
        Role::FleetWorker,
        "fleet.worker",
        "fleet.worker",
        "runs HTTP tasks and stores their results",
    ),
];

impl Role {
    /// Those whose routes are on the public listener.
    pub const PUBLIC: [Self; 5] = [
        Self::IngestApi,
        Self::OrdersGateway,
        Self::LinesReader,
        Self::LinesWriter,
        Self::AccountsApi,
    ];

    /// Every role, in the order of the documentation.
    pub fn all() -> impl Iterator<Item = Self> {
        ROLES.iter().map(|(role, ..)| *role)
    }

    /// Its name: `ingest.api`.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The app that it belongs to: `ingest`.
    pub fn app(self) -> &'static str {
        let name = self.as_str();
        name.split('.').next().unwrap_or(name)
    }

    /// Short description.
    pub fn summary(self) -> &'static str {
        self.row().3
    }

    /// The roles in a comma-separated list; bare reference names work where they mean one role.
    ///
    /// # Errors
    /// `Invalid` for an unknown or ambiguous name, with the choices.
    pub fn parse_list(list: &str) -> Result<Vec<Self>> {
        let mut roles = Vec::new();
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let role = Self::parse(name)?;
            if !roles.contains(&role) {
                roles.push(role);
            }
        }
        if roles.is_empty() {
            Err(Error::invalid(format!("no role given; {}", available())))
        } else {
            Ok(roles)
        }
    }

    fn parse(name: &str) -> Result<Self> {
        // Both the ingest app and the fleet app have one.
        if name == "worker" {
            return Err(Error::invalid(
                "`worker` is ambiguous; name `ingest.worker` or `fleet.worker`",
            ));
        }
        if let Some((role, ..)) = ROLES
            .iter()
            .find(|(_, full, bare, _)| [*full, *bare].contains(&name))
        {
            return Ok(*role);
        }
        let names = ROLES.iter().flat_map(|(_, full, bare, _)| [*full, *bare]);
        Err(Error::invalid(format!(
            "unknown role `{name}`{}; {}",
            did_you_mean(name, names),
            available()
        )))
    }

    fn row(self) -> (Self, &'static str, &'static str, &'static str) {
        ROLES[self as usize]
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn available() -> String {
    let names: Vec<&str> = Role::all().map(Role::as_str).collect();
    format!("available: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_names_work_where_they_mean_one_role() {
        assert_eq!(Role::parse_list("api").unwrap(), [Role::IngestApi]);
        assert_eq!(
            Role::parse_list("ingest.worker, ingest.api,api").unwrap(),
            [Role::IngestWorker, Role::IngestApi]
        );
        for (list, reason) in [
            (
                "worker",
                "`worker` is ambiguous; name `ingest.worker` or `fleet.worker`",
            ),
            (
                "apo",
                "unknown role `apo`; did you mean `api`?; {available}",
            ),
            (" , ", "no role given; {available}"),
        ] {
            let reason = reason.replace("{available}", &available());
            assert_eq!(Role::parse_list(list).unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn rows_stand_at_their_own_index() {
        for role in Role::all() {
            assert_eq!(role.row().0, role);
        }
    }
}
