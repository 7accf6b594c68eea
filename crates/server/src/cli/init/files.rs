//! The files of `deploy/`, which are embedded as they are, and what `init` fills in.
//!
//! A comment `towpath init: settings` is the place of the settings that differ from their defaults, and one that names a
//! key stands above the line with the default of that key. Without settings a file stays as it is.

use super::What;
use crate::config::{KEYS, Kind};

/// The mark of a place to fill in.
const MARK: &str = "# towpath init: ";

/// Embeds files of `deploy/` by their names.
macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/", $name)))),*]
    };
}

const COMPOSE: &[(&str, &str)] = embedded![
    "compose/ingest.yaml",
    "compose/orders.yaml",
    "compose/lines.yaml",
    "compose/accounts.yaml",
    "compose/fleet.yaml",
    "compose/compose.yaml",
    "compose/.env.example",
    "compose/secrets.sh",
];

const K8S: &[(&str, &str)] = embedded![
    "k8s/api.yaml",
    "k8s/worker.yaml",
    "k8s/gateway.yaml",
    "k8s/processor.yaml",
    "k8s/notifier.yaml",
    "k8s/dashboard.yaml",
    "k8s/reader.yaml",
    "k8s/writer.yaml",
    "k8s/unified-server.yaml",
    "k8s/relay.yaml",
    "k8s/controller.yaml",
    "k8s/agent.yaml",
    "k8s/fleet-worker.yaml",
    "k8s/redis.yaml",
    "k8s/rabbitmq.yaml",
    "k8s/postgres.yaml",
    "k8s/kafka.yaml",
    "k8s/lines-example.yaml",
    "k8s/secrets.sh",
    "prometheus/adapter.yaml",
];

const HELM: &[(&str, &str)] = embedded![
    "helm/towpath/Chart.yaml",
    "helm/towpath/values.yaml",
    "helm/towpath/values.schema.json",
    "helm/towpath/values-ingest.yaml",
    "helm/towpath/values-orders.yaml",
    "helm/towpath/values-lines.yaml",
    "helm/towpath/values-accounts.yaml",
    "helm/towpath/values-fleet.yaml",
    "helm/towpath/templates/_helpers.tpl",
    "helm/towpath/templates/workloads.yaml",
    "helm/towpath/templates/scaling.yaml",
    "helm/towpath/templates/servicemonitor.yaml",
    "helm/towpath/templates/NOTES.txt",
];

const KEDA: &[(&str, &str)] = embedded![
    "keda/worker.yaml",
    "keda/processor.yaml",
    "keda/writer.yaml"
];

const SYSTEMD: &[(&str, &str)] = embedded!["systemd/towpath.service"];

const GRAFANA: &[(&str, &str)] = embedded!["grafana/towpath.json"];

const ALERTS: &[(&str, &str)] = embedded![
    "prometheus/alerts.yaml",
    "prometheus/alerts_test.yaml",
    "prometheus/prometheus.yaml",
];

impl What {
    /// Names below the output folder, and texts.
    pub(super) const fn embedded(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Compose => COMPOSE,
            Self::K8s => K8S,
            Self::Helm => HELM,
            Self::Keda => KEDA,
            Self::Systemd => SYSTEMD,
            Self::Grafana => GRAFANA,
            Self::Alerts => ALERTS,
        }
    }

    /// The settings that its files do not contain themselves.
    fn fill(self, settings: &[(String, String)]) -> Vec<(String, String)> {
        let kept = settings.iter();
        let kept = kept.filter(|(name, _)| self == Self::Systemd || !is_of_container(name));
        kept.cloned().collect()
    }

    /// A setting as a line of its files.
    fn line(self, name: &str, value: &str) -> String {
        match self {
            Self::Systemd => {
                let pair = format!("{name}={}", value.replace('%', "%%"));
                format!("Environment={}", serde_json::json!(pair))
            }
            // Compose substitutes variables of the host after a single `$`.
            Self::Compose => format!("{name}: {}", serde_json::json!(value.replace('$', "$$"))),
            _ => format!("{name}: {}", serde_json::json!(value)),
        }
    }
}

/// Whether files for containers set it: ports that they publish, and paths of volumes that they mount.
fn is_of_container(variable: &str) -> bool {
    let mut keys = KEYS.iter();
    let key = keys.find(|key| key.variable() == variable);
    key.is_some_and(|key| {
        let paths = [
            "ingest.worker.output",
            "lines.input",
            "lines.inputs",
            "lines.output",
        ];
        key.kind == Kind::Address || paths.contains(&key.path)
    })
}

/// The files with the settings where their marks are; `settings` are variables and values.
pub(super) fn files(what: What, settings: &[(String, String)]) -> Vec<(String, String)> {
    let settings = what.fill(settings);
    let files = what.embedded().iter();
    files
        .map(|(name, text)| {
            let text = match settings.as_slice() {
                [] => (*text).to_owned(),
                settings => filled(what, text, settings),
            };
            ((*name).to_owned(), text)
        })
        .collect()
}

fn filled(what: What, text: &str, settings: &[(String, String)]) -> String {
    let mut lines: Vec<String> = Vec::new();
    // Default and value of the key that the line above names.
    let mut replaced: Option<(&str, &str)> = None;
    for row in text.lines() {
        let indent = &row[..row.len() - row.trim_start().len()];
        if let Some((default, value)) = replaced.take() {
            lines.push(with_value(row, default, value));
            continue;
        }
        let Some((before, mark)) = row.split_once(MARK) else {
            lines.push(row.to_owned());
            continue;
        };
        if mark != "settings" {
            lines.push(row.to_owned());
            let key = KEYS.iter().find(|key| key.path == mark);
            replaced = key.and_then(|key| {
                let (_, value) = settings.iter().find(|(name, _)| *name == key.variable())?;
                Some((key.default?, value.as_str()))
            });
            continue;
        }
        // An empty map becomes one with the settings.
        let empty = before.trim_end().strip_suffix(" {}");
        lines.extend(empty.map(str::to_owned));
        let inner = empty.map_or("", |_| "  ");
        for (name, value) in settings {
            // A setting replaces the variable that the file has.
            let own = format!("{indent}{name}: ");
            let block = lines.iter().rposition(|line| !line.starts_with(indent));
            let block = block.map_or(0, |outside| outside + 1);
            if let Some(at) = lines[block..]
                .iter()
                .position(|line| line.starts_with(&own))
            {
                lines.remove(block + at);
            }
            lines.push(format!("{indent}{inner}{}", what.line(name, value)));
        }
    }
    lines.join("\n") + "\n"
}

/// The line with the value in place of the default, in quotes or in quotes within a quoted text.
fn with_value(row: &str, default: &str, value: &str) -> String {
    let (quoted, value) = (
        serde_json::json!(default).to_string(),
        serde_json::json!(value).to_string(),
    );
    if row.contains(&quoted) {
        return row.replace(&quoted, &value);
    }
    let inner = |text: &str| {
        let text = serde_json::json!(text).to_string();
        text[1..text.len() - 1].to_owned()
    };
    row.replace(&inner(&quoted), &inner(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_has_a_key_and_its_default_below() {
        let mut settings = 0;
        for what in super::super::ALL {
            for (name, text) in what.embedded() {
                let rows: Vec<&str> = text.lines().collect();
                for (at, row) in rows.iter().enumerate() {
                    let Some((_, mark)) = row.split_once(MARK) else {
                        continue;
                    };
                    if mark == "settings" {
                        settings += 1;
                        continue;
                    }
                    let key = KEYS.iter().find(|key| key.path == mark);
                    let default = key.and_then(|key| key.default);
                    let default = default.unwrap_or_else(|| panic!("{name}: {mark}"));
                    let below = with_value(rows[at + 1], default, "another");
                    assert_ne!(below, rows[at + 1], "{name}: {default}");
                }
            }
        }
        assert!(settings > 20, "{settings}");
    }

    #[test]
    fn a_setting_replaces_the_variable_of_the_file() {
        let settings = [("TOWPATH_LOG__FORMAT".to_owned(), "text".to_owned())];
        let all = files(What::K8s, &settings);
        let (_, text) = all.iter().find(|(name, _)| name == "k8s/api.yaml").unwrap();
        assert_eq!(text.matches("TOWPATH_LOG__FORMAT").count(), 1);
        assert!(
            text.contains("  TOWPATH_LOG__FORMAT: \"text\"\n---\n"),
            "{text}"
        );
    }
}
