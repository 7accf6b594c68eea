//! `towpath init`: files to run Towpath with, from the configuration in force.

mod grafana;
mod helm;
mod k8s;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Exit, Failure, Global, output};
use crate::config::{Key, Kind, Loaded, Origin};

/// Options of `init`.
#[derive(Debug, Args)]
#[command(
    after_help = "Settings that differ from their defaults are written into the files, secrets aside.\n\nExamples:\n  towpath init compose --dir files\n  towpath init systemd --dir files\n  towpath init alerts --dir files --force"
)]
pub(super) struct InitArgs {
    /// Kind of files
    what: What,
    /// Output folder
    #[arg(long, default_value = "deploy")]
    dir: PathBuf,
    /// Replace existing files that differ
    #[arg(long)]
    force: bool,
}

/// The purpose of the files.
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

/// Settings that differ from the defaults, as variables. Secrets stay where they are.
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
        What::Compose => compose(settings),
        What::K8s => k8s::files(settings),
        What::Helm => helm::files(settings),
        What::Keda => k8s::keda(settings),
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

/// One project for each app, and one for everything. Projects of one name would share networks and volumes.
fn compose(settings: &[(String, String)]) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = [
        (
            "ingest",
            "towpath-ingest",
            include_str!("compose/ingest.yaml"),
        ),
        (
            "orders",
            "towpath-orders",
            include_str!("compose/orders.yaml"),
        ),
        ("lines", "towpath-lines", include_str!("compose/lines.yaml")),
        (
            "accounts",
            "towpath-accounts",
            include_str!("compose/accounts.yaml"),
        ),
        ("fleet", "towpath-fleet", include_str!("compose/fleet.yaml")),
        ("compose", "towpath", include_str!("compose/all.yaml")),
    ]
    .map(|(name, project, text)| {
        let text = format!("{}\n{text}", include_str!("compose/common.yaml"));
        let text = text.replace("{project}", project);
        let text = filled(&text, &inside(settings), |name, value| {
            // Compose puts variables of the host in at a single `$`.
            format!("{name}: {}", serde_json::json!(value.replace('$', "$$")))
        });
        (format!("compose/{name}.yaml"), text)
    })
    .into();
    let example = include_str!("compose/env.example").to_owned();
    files.push(("compose/.env.example".to_owned(), example));
    let secrets = include_str!("compose/secrets.sh").to_owned();
    files.push(("compose/secrets.sh".to_owned(), secrets));
    files
}

/// The settings without those that the files for containers say themselves: ports that they publish, and paths of
/// volumes that they mount.
fn inside(settings: &[(String, String)]) -> Vec<(String, String)> {
    let is_of_file = |variable: &str| {
        let key = crate::config::KEYS
            .iter()
            .find(|key| key.variable() == variable);
        key.is_some_and(|key| {
            let paths = [
                "ingest.worker.output",
                "lines.input",
                "lines.inputs",
                "lines.output",
            ];
            key.kind == Kind::Address || paths.contains(&key.path)
        })
    };
    let kept = settings.iter().filter(|(name, _)| !is_of_file(name));
    kept.cloned().collect()
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
    fn committed_files_are_those_that_the_command_writes() {
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
        let settings = [
            ("TOWPATH_INGEST__QUEUE", "a \"b\" 50%"),
            (
                "TOWPATH_INGEST__WORKER__COMMAND__PROGRAM",
                "[\"x $OUT_DIR; cost=$5\"]",
            ),
            ("TOWPATH_SERVER__LISTEN", ":9000"),
            ("TOWPATH_LINES__INPUT", "/var/log/x"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
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
        let unit = of(What::Systemd, "systemd/towpath.service");
        assert!(unit.contains(line), "{unit}");
        let program = "x $OUT_DIR; cost=$5";
        assert!(unit.contains(program), "{unit}");
        assert!(of(What::K8s, "k8s/worker.yaml").contains(program));
        let compose = of(What::Compose, "compose/ingest.yaml");
        assert!(compose.contains("x $$OUT_DIR; cost=$$5"), "{compose}");
        for text in [compose, values, of(What::K8s, "k8s/reader.yaml")] {
            assert!(
                !text.contains(":9000") && !text.contains("/var/log/x"),
                "{text}"
            );
        }
        assert!(
            unit.contains("=:9000") && unit.contains("/var/log/x"),
            "{unit}"
        );
    }

    #[test]
    fn scalers_watch_the_configured_queue() {
        let settings = [
            ("TOWPATH_INGEST__QUEUE".to_owned(), "jobs".to_owned()),
            ("TOWPATH_LINES__STREAM".to_owned(), "rows".to_owned()),
        ];
        for (what, name, expected) in [
            (What::K8s, "k8s/worker.yaml", "queue: \"jobs\""),
            (What::K8s, "k8s/writer.yaml", "stream: \"rows\""),
            (What::Keda, "keda/worker.yaml", "{queue=\\\"jobs\\\"}"),
            (
                What::Helm,
                "helm/towpath/values-lines.yaml",
                "value: \"rows\"",
            ),
        ] {
            let mut all = files(what, &settings).into_iter();
            let text = all.find(|(file, _)| file == name).unwrap().1;
            assert!(text.contains(expected), "{name}: {text}");
        }
    }

    #[test]
    fn every_project_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> = files(What::Compose, &[])
            .into_iter()
            .filter_map(|(_, text)| Some(text.lines().next()?.strip_prefix("name: ")?.to_owned()))
            .collect();
        assert_eq!(names.len(), 6, "{names:?}");
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
