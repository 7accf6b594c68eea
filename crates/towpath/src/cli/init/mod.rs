//! `towpath init`: files to run Towpath with, from the configuration in force.

mod grafana;
mod helm;
mod k8s;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Exit, Failure, Global, output};
use crate::config::{Key, Loaded, Origin};

/// Options of `init`.
#[derive(Debug, Args)]
#[command(
    after_help = "Settings that differ from their defaults are written into the files, secrets aside.\n\nExamples:\n  towpath init compose --dir files\n  towpath init systemd --dir files\n  towpath init alerts --dir files --force"
)]
pub(super) struct InitArgs {
    /// What for
    what: What,
    /// Where the files go
    #[arg(long, default_value = "deploy")]
    dir: PathBuf,
    /// Replace files that are there and differ
    #[arg(long)]
    force: bool,
}

/// What files are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    // Comments, because clap would print documented words on lines of their own.
    // Docker Compose: one file for each app, and one for everything.
    Compose,
    // Kubernetes: one file for each role, the autoscalers among them.
    K8s,
    // A Helm chart of the same, with values for each app.
    Helm,
    // KEDA: scaled objects instead of those autoscalers.
    Keda,
    // A unit for one machine.
    Systemd,
    // A dashboard.
    Grafana,
    // Prometheus: alerts, their tests, and a configuration.
    Alerts,
}

pub(super) fn run(global: &Global, args: InitArgs) -> Result<Exit, Failure> {
    let loaded = global.load()?;
    let files = files(args.what, &settings(&loaded));
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| args.dir.join(name)).collect();
    for (path, (_, text)) in paths.iter().zip(&files) {
        let is_other = std::fs::read_to_string(path).is_ok_and(|there| there != *text);
        if is_other && !args.force {
            let text = format!(
                "`{}` is there and differs; `--force` replaces it",
                path.display()
            );
            return Err(Failure::failed(text));
        }
    }
    for (path, (_, text)) in paths.iter().zip(files) {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)?;
        if !global.quiet {
            output::line(path.display().to_string())?;
        }
    }
    Ok(Exit::Ok)
}

/// What differs from the defaults, as variables. Secrets stay where they are.
fn settings(loaded: &Loaded) -> Vec<(String, String)> {
    // Places are those of the image, the unit or the pod.
    let is_place = |key: &Key| ["data.dir", "server.admin"].contains(&key.path);
    crate::config::KEYS
        .iter()
        .filter(|key| !key.kind.may_be_secret() && !is_place(key))
        .filter_map(|key| {
            let setting = loaded.settings.get(key.path)?;
            let is_said = !matches!(setting.origin, Origin::Default);
            let text = setting.text.clone().filter(|_| is_said)?;
            Some((key.variable(), text))
        })
        .collect()
}

/// The files for something: names below the folder, and texts.
fn files(what: What, settings: &[(String, String)]) -> Vec<(String, String)> {
    let named = |name: &str, text: String| (name.to_owned(), text);
    match what {
        What::Compose => [
            ("ingest", include_str!("compose/ingest.yaml")),
            ("orders", include_str!("compose/orders.yaml")),
            ("lines", include_str!("compose/lines.yaml")),
            ("accounts", include_str!("compose/accounts.yaml")),
            ("fleet", include_str!("compose/fleet.yaml")),
            ("compose", include_str!("compose/all.yaml")),
        ]
        .map(|(name, text)| {
            let text = format!("{}\n{text}", include_str!("compose/common.yaml"));
            let text = filled(&text, settings, |name, value| {
                format!("{name}: {}", serde_json::json!(value))
            });
            (format!("compose/{name}.yaml"), text)
        })
        .into(),
        What::K8s => k8s::files(settings),
        What::Helm => helm::files(settings),
        What::Keda => k8s::keda(),
        What::Systemd => {
            let text = filled(include_str!("towpath.service"), settings, |name, value| {
                let value = value.replace('%', "%%");
                format!(
                    "Environment={}",
                    serde_json::json!(format!("{name}={value}"))
                )
            });
            vec![named("systemd/towpath.service", text)]
        }
        What::Grafana => vec![named("grafana/towpath.json", grafana::dashboard())],
        What::Alerts => vec![
            named("prometheus/alerts.yaml", crate::problems::alerts()),
            named(
                "prometheus/alerts_test.yaml",
                crate::problems::alerts_test(),
            ),
            named(
                "prometheus/prometheus.yaml",
                include_str!("prometheus.yaml").to_owned(),
            ),
        ],
    }
}

/// The template with the version, and with the settings where they go, each on a line of its own.
fn filled(
    template: &str,
    settings: &[(String, String)],
    line: impl Fn(&str, &str) -> String,
) -> String {
    let mut text = String::new();
    for row in template.lines() {
        if row.trim() == "{settings}" {
            let indent = &row[..row.len() - row.trim_start().len()];
            for (name, value) in settings {
                text.push_str(&format!("{indent}{}\n", line(name, value)));
            }
        } else {
            text.push_str(&row.replace("{version}", env!("CARGO_PKG_VERSION")));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metric;

    const ALL: [What; 7] = [
        What::Compose,
        What::K8s,
        What::Helm,
        What::Keda,
        What::Systemd,
        What::Grafana,
        What::Alerts,
    ];

    #[test]
    fn what_is_committed_is_what_the_command_writes() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
        for (name, text) in ALL.into_iter().flat_map(|what| files(what, &[])) {
            let path = folder.join(&name);
            if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(committed, text, "{name}: run with TOWPATH_UPDATE_DOCS=1");
        }
    }

    #[test]
    fn settings_stand_where_they_are_read() {
        let settings = [("TOWPATH_INGEST__QUEUE".to_owned(), "a \"b\" 50%".to_owned())];
        let of = |what, name: &str| {
            let all = files(what, &settings);
            all.into_iter().find(|(file, _)| file == name).unwrap().1
        };
        let line = "      TOWPATH_INGEST__QUEUE: \"a \\\"b\\\" 50%\"\n";
        assert!(of(What::Compose, "compose/ingest.yaml").contains(line));
        assert!(of(What::K8s, "k8s/api.yaml").contains(&line[4..]));
        let values = of(What::Helm, "helm/towpath/values-ingest.yaml");
        assert!(values.contains(&line[4..]), "{values}");
        let line = "\nEnvironment=\"TOWPATH_INGEST__QUEUE=a \\\"b\\\" 50%%\"\n";
        assert!(of(What::Systemd, "systemd/towpath.service").contains(line));
    }

    #[test]
    fn every_metric_that_is_asked_for_exists() {
        let is_known = |word: &str| {
            let known = Metric::ALL.iter().any(|metric| {
                word == metric.row().0 || word == format!("{}_bucket", metric.row().0)
            });
            known || ["towpath", "towpath_init"].contains(&word)
        };
        let mut asked = 0;
        for what in [
            What::Grafana,
            What::Alerts,
            What::K8s,
            What::Helm,
            What::Keda,
        ] {
            for (name, text) in files(what, &[]) {
                let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let metrics = words.filter(|word| {
                    ["towpath_", "lines_read", "lines_written", "process_"]
                        .iter()
                        .any(|start| word.starts_with(start))
                });
                for metric in metrics {
                    assert!(is_known(metric), "{name}: {metric}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 40, "{asked}");
    }

    #[test]
    fn every_role_can_be_deployed() {
        let manifests: String = files(What::K8s, &[])
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        let compose: String = files(What::Compose, &[])
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        for role in crate::wiring::Role::all() {
            let args = format!("\"run\", \"{role}\"");
            assert!(manifests.contains(&args), "{role}");
            assert!(compose.contains(&args), "{role}");
        }
    }

    #[test]
    fn every_alert_has_a_runbook() {
        let runbook = include_str!("../../../../../docs/runbook.md").to_lowercase();
        let alerts = crate::problems::alerts();
        let places = alerts
            .lines()
            .filter_map(|line| line.split_once("runbook.md#"));
        assert!(places.clone().count() > 8);
        for (_, place) in places {
            assert!(runbook.contains(&format!("\n## {place}\n")), "{place}");
        }
    }
}
