//! `towpath init`: files to run Towpath with, from the configuration in force.

mod files;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Exit, Failure, Global, output};
use crate::config::{Key, Loaded, Origin};
use files::files;

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

#[cfg(test)]
const ALL: [What; 7] = [
    What::Compose,
    What::K8s,
    What::Helm,
    What::Keda,
    What::Systemd,
    What::Grafana,
    What::Alerts,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::Rule;
    use crate::telemetry::Metric;

    /// Metrics without a panel: constants, bounds of another figure, and sums of figures that have one.
    const WITHOUT_PANEL: [Metric; 7] = [
        Metric::ProcessDuration,
        Metric::QueueOldestAge,
        Metric::QueuesSummed,
        Metric::DiskSize,
        Metric::BuildInfo,
        Metric::ProcessMaxFds,
        Metric::ProcessStart,
    ];

    fn text_of(name: &str) -> &'static str {
        let mut all = ALL.into_iter().flat_map(What::embedded);
        all.find(|(file, _)| *file == name).unwrap().1
    }

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
        let kinds = [
            "compose",
            "k8s",
            "helm/towpath",
            "helm/towpath/templates",
            "keda",
            "systemd",
            "grafana",
            "prometheus",
        ];
        for kind in kinds {
            for entry in folder.join(kind).read_dir().unwrap() {
                let entry = entry.unwrap();
                let name = format!("{kind}/{}", entry.file_name().display());
                // Secrets that `secrets.sh` made here.
                if entry.file_type().unwrap().is_file() && !name.ends_with("/.env") {
                    text_of(&name);
                }
            }
        }
    }

    #[test]
    fn images_and_chart_have_the_version_of_the_build() {
        let version = env!("CARGO_PKG_VERSION");
        let mut found = 0;
        for (name, text) in ALL.into_iter().flat_map(What::embedded) {
            let starts = ["image: towpath:", "appVersion: "];
            for (_, rest) in starts
                .iter()
                .flat_map(|start| text.lines().filter_map(|line| line.split_once(*start)))
            {
                assert_eq!(rest, version, "{name}: set the version of the release");
                found += 1;
            }
        }
        assert!(found > 18, "{found}");
        let chart = text_of("helm/towpath/Chart.yaml");
        assert!(
            chart.contains(&format!("\nversion: {version}\n")),
            "{chart}"
        );
    }

    #[test]
    fn every_metric_has_a_panel_or_a_reason() {
        let dashboard = text_of("grafana/towpath.json");
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
        for metric in Metric::ALL {
            let name = metric.row().0;
            let is_word = |rest: &str| {
                let next = rest.chars().next();
                !next.is_some_and(|next| next.is_ascii_alphanumeric() || next == '_')
            };
            let mut found = dashboard.match_indices(name);
            let is_shown = found.any(|(at, _)| {
                let rest = &dashboard[at + name.len()..];
                is_word(rest.strip_prefix("_bucket").unwrap_or(rest))
            });
            let is_left_out = WITHOUT_PANEL.contains(&metric);
            assert_ne!(is_shown, is_left_out, "{metric:?}");
        }
    }

    #[test]
    fn every_rule_has_its_alert_and_a_test_of_it() {
        let alerts = text_of("prometheus/alerts.yaml");
        let tests = text_of("prometheus/alerts_test.yaml");
        for rule in Rule::all() {
            let (alert, name) = (rule.alert(), rule.name());
            let expected = format!(
                r#"      - alert: {alert}
        expr: max by (problem, subject) (towpath_problem{{problem="{name}"}}) > 0
        for: {}
        labels: {{severity: {}}}
        annotations:
          summary: "{{{{ $labels.subject }}}}: {}"
          runbook: docs/runbook.md#{}
"#,
                rule.hold(),
                rule.severity().as_str(),
                name.replace('_', " "),
                alert.to_lowercase()
            );
            assert!(alerts.contains(&expected), "alerts.yaml needs:\n{expected}");
        }
        let named = alerts.lines().filter_map(|line| line.split_once("alert: "));
        for (_, alert) in named {
            let tested = format!("alertname: {alert}\n");
            assert!(tests.contains(&tested), "{alert} has no test");
        }
        let problems = alerts.matches("towpath_problem{problem=").count();
        assert_eq!(problems, Rule::all().count());
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
        let alerts = text_of("prometheus/alerts.yaml");
        let places = alerts
            .lines()
            .filter_map(|line| line.split_once("runbook.md#"));
        assert!(places.clone().count() > 8);
        for (_, place) in places {
            assert!(runbook.contains(&format!("\n## {place}\n")), "{place}");
        }
    }
}
