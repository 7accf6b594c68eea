//! The banner of a process that is up: listener, storage with its origin, and destination of each app.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_core::address::host_shown;

use super::up::place_of;
use crate::config::{ChannelKind, Config, Loaded, SinkKind};
use crate::wiring::{Role, Started};

/// A row of columns; the last one is not padded.
type Row = Vec<String>;

/// The facts in the banner.
pub(super) struct Banner<'a> {
    pub(super) started: &'a Started,
    pub(super) loaded: &'a Loaded,
    pub(super) roles: &'a [Role],
    pub(super) elapsed: Duration,
    pub(super) durability: &'a str,
    pub(super) kept: &'a str,
    pub(super) with_demo: bool,
}

impl Banner<'_> {
    /// The lines, in their order, for a terminal of this width.
    pub(super) fn lines(&self, width: Option<usize>) -> Vec<String> {
        let config = &self.loaded.config;
        let mut lines = vec![
            String::new(),
            format!(
                "  towpath {} · ready in {} ms",
                env!("CARGO_PKG_VERSION"),
                self.elapsed.as_millis()
            ),
            String::new(),
        ];
        let admin = link("http", self.started.admin);
        let mut rows = Vec::new();
        if let Some(code) = self.started.sign_in_code() {
            let base = admin.split(' ').next().unwrap_or_default();
            let about = "signs a browser in once, within 10 minutes".to_owned();
            rows.push(vec![
                "Dashboard".to_owned(),
                super::dashboard::link(base, &code),
                about,
            ]);
        }
        if let Some(http) = self.started.http {
            let api = link(self.scheme(), http);
            let url = api.split(' ').next().unwrap_or_default();
            let hint = match self.runs(Role::IngestApi) {
                true => format!("curl -d 'hello' {url}/enqueue"),
                false => format!("routes: {url}/"),
            };
            rows.push(vec!["API".to_owned(), api, hint]);
        }
        let hint = "towpath queue ls · /metrics · /openapi.json".to_owned();
        rows.push(vec!["Admin".to_owned(), admin, hint]);
        let folder = config.data_dir.display().to_string();
        let about = format!("{} · durability: {}", self.kept, self.durability);
        rows.push(vec!["Data".to_owned(), folder, about]);
        if self.with_demo {
            let about = "a little traffic for every app; some of it fails".to_owned();
            rows.push(vec!["Demo".to_owned(), "on".to_owned(), about]);
        }
        lines.extend(aligned(rows));
        lines.push(String::new());
        let heading = ["App", "Listens on", "Keeps data in", "Delivers to"];
        let mut apps = vec![heading.map(str::to_owned).to_vec()];
        apps.extend(self.apps());
        lines.extend(fitted(apps, width));
        lines.push(String::new());
        lines.push("  Ctrl-C drains and stops; a second Ctrl-C stops at once.".to_owned());
        lines.push(String::new());
        lines
    }

    fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    const fn scheme(&self) -> &'static str {
        match self.loaded.config.tls_certificate {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Where a role of the public listener is, or the role's own listener.
    fn listener(&self, role: Role) -> Option<String> {
        if !self.runs(role) {
            return None;
        }
        let own = self.started.listeners.iter();
        let own = own.clone().find(|(name, _)| *name == role.as_str());
        let address = match own {
            Some((_, address)) => Some(*address),
            None if Role::PUBLIC.contains(&role) => self.started.http,
            None => None,
        };
        address.map(port)
    }

    fn listeners(&self, roles: &[Role]) -> String {
        let mut all: Vec<String> = roles
            .iter()
            .filter_map(|role| self.listener(*role))
            .collect();
        all.dedup();
        match all.is_empty() {
            true => "-".to_owned(),
            false => all.join(", "),
        }
    }

    fn places(&self, keys: &[&str]) -> String {
        let mut places: Vec<String> = keys.iter().map(|key| self.place(key)).collect();
        places.dedup();
        places.join(", ")
    }

    fn place(&self, key: &str) -> String {
        let place = place_of(self.loaded, key);
        match place.split_once(" (nothing else is set)") {
            Some((default, _)) if default.contains("SQLite") => "SQLite (default)".to_owned(),
            Some(_) => "embedded store (default)".to_owned(),
            None => place,
        }
    }

    fn apps(&self) -> Vec<Row> {
        let config = &self.loaded.config;
        let of = |roles: &[Role]| roles.iter().any(|role| self.runs(*role));
        let mut rows = Vec::new();
        let mut row = |app: &str, roles: &[Role], keys: &[&str], sink: String| {
            if of(roles) {
                rows.push(vec![
                    app.to_owned(),
                    self.listeners(roles),
                    self.places(keys),
                    sink,
                ]);
            }
        };
        let when = |role: Role, sink: String| match self.runs(role) {
            true => sink,
            false => "-".to_owned(),
        };
        row(
            "ingest",
            &[Role::IngestApi, Role::IngestWorker],
            &["backends.ingest"],
            when(Role::IngestWorker, ingest_sink(config)),
        );
        row(
            "orders",
            &[
                Role::OrdersGateway,
                Role::OrdersDashboard,
                Role::OrdersProcessor,
                Role::OrdersNotifier,
            ],
            &["backends.orders", "backends.orders_kv"],
            when(Role::OrdersNotifier, notifier_sink(config)),
        );
        let lines = match (&config.lines.input, config.lines.inputs.is_empty()) {
            (None, true) => "nothing yet; set `lines.input` (INPUT_PATH)".to_owned(),
            _ => match &config.lines.output {
                Some(path) => format!("file {}", path.display()),
                None => format!("stream {}", config.lines.stream),
            },
        };
        row(
            "lines",
            &[Role::LinesReader, Role::LinesWriter],
            &["backends.lines"],
            lines,
        );
        let topic = format!(
            "topic {} on {}",
            config.accounts.topic,
            self.place("backends.relay")
        );
        row(
            "accounts",
            &[Role::AccountsApi, Role::AccountsRelay],
            &["accounts.database", "backends.limits"],
            when(Role::AccountsRelay, topic),
        );
        row(
            "fleet",
            &[Role::FleetController, Role::FleetWorker, Role::FleetAgent],
            &["fleet.controller.database", "backends.fleet"],
            when(Role::FleetWorker, "the URLs of tasks".to_owned()),
        );
        rows
    }
}

fn ingest_sink(config: &Config) -> String {
    match config.sink {
        SinkKind::File => format!("file {}", config.output_path().display()),
        SinkKind::Stdout => "standard output".to_owned(),
        SinkKind::Command => {
            let program = config.command.first().map_or("", String::as_str);
            format!("command {program}")
        }
        SinkKind::Webhook => {
            let url = config.webhook_url.as_ref().map_or("", |url| url.expose());
            format!("webhook {}", host_shown(url))
        }
    }
}

fn notifier_sink(config: &Config) -> String {
    let url = |url: Option<&crate::config::Secret>| {
        let url = url.map_or("", |url| url.expose());
        host_shown(url)
    };
    match config.orders.channel {
        ChannelKind::Log => "the log".to_owned(),
        ChannelKind::Smtp => format!("mail {}", url(config.orders.smtp_url.as_ref())),
        ChannelKind::Webhook => format!("webhook {}", url(config.orders.webhook_url.as_ref())),
    }
}

/// `http://localhost:8080 (all interfaces)`.
fn link(scheme: &str, address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("{scheme}://localhost:{} (all interfaces)", address.port()),
        false => format!("{scheme}://{address}"),
    }
}

/// `:8080` on all interfaces, otherwise the whole address.
fn port(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!(":{}", address.port()),
        false => address.to_string(),
    }
}

fn aligned(rows: Vec<Row>) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let line = |row: Row| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("  {}", cells.join("  ")).trim_end().to_owned()
    };
    rows.into_iter().map(line).collect()
}

/// As a table, or on a narrow terminal with a line for each cell.
fn fitted(rows: Vec<Row>, width: Option<usize>) -> Vec<String> {
    let table = aligned(rows.clone());
    let fits = |line: &String| width.is_none_or(|width| line.chars().count() <= width);
    if table.iter().all(fits) {
        return table;
    }
    let rows = rows.into_iter().skip(1);
    let lines = rows.flat_map(|row| {
        let labels = ["", "listens on", "keeps data in", "delivers to"];
        let cells = row.into_iter().zip(labels).filter(|(cell, _)| cell != "-");
        cells.map(|(cell, label)| match label {
            "" => format!("  {cell}"),
            label => format!("    {label:<13}  {cell}"),
        })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_terminal_gets_a_line_for_each_cell() {
        let rows = [
            ["App", "Listens on", "Keeps data in", "Delivers to"],
            ["ingest", "127.0.0.1:8080", "embedded store", "the log"],
            ["lines", "-", "embedded store", "-"],
        ];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(fitted(rows.clone(), None).len(), 3);
        assert_eq!(fitted(rows.clone(), Some(80)).len(), 3);
        let narrow = [
            "  ingest",
            "    listens on     127.0.0.1:8080",
            "    keeps data in  embedded store",
            "    delivers to    the log",
            "  lines",
            "    keeps data in  embedded store",
        ];
        assert_eq!(fitted(rows, Some(40)), narrow);
    }

    #[test]
    fn columns_begin_below_each_other() {
        let rows = [["Admin", "http://x", "a"], ["API", "é", "bb"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(
            aligned(rows),
            ["  Admin  http://x  a", "  API    é         bb"]
        );
    }

    #[test]
    fn every_interface_is_said() {
        let link = |address: &str| link("http", address.parse().unwrap());
        assert_eq!(link("[::]:8080"), "http://localhost:8080 (all interfaces)");
        assert_eq!(link("0.0.0.0:80"), "http://localhost:80 (all interfaces)");
        assert_eq!(link("127.0.0.1:7070"), "http://127.0.0.1:7070");
    }
}
