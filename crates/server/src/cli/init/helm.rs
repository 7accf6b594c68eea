//! A Helm chart: the workloads of `k8s.rs` as values, one file for each app.

use std::fmt::Write;

use super::k8s::{PRIVATE_4, PRIVATE_6, WORKLOADS, Workload};

/// The chart without its values for the apps.
const CHART: [(&str, &str); 8] = [
    ("Chart.yaml", include_str!("helm/Chart.yaml")),
    ("values.yaml", include_str!("helm/values.yaml")),
    (
        "values.schema.json",
        include_str!("helm/values.schema.json"),
    ),
    (
        "templates/_helpers.tpl",
        include_str!("helm/templates/_helpers.tpl"),
    ),
    (
        "templates/workloads.yaml",
        include_str!("helm/templates/workloads.yaml"),
    ),
    (
        "templates/scaling.yaml",
        include_str!("helm/templates/scaling.yaml"),
    ),
    (
        "templates/servicemonitor.yaml",
        include_str!("helm/templates/servicemonitor.yaml"),
    ),
    (
        "templates/NOTES.txt",
        include_str!("helm/templates/NOTES.txt"),
    ),
];

/// The apps, as roles begin.
const APPS: [&str; 5] = ["ingest", "orders", "lines", "accounts", "fleet"];

/// Each file's name and text; `settings` go to every workload.
pub(super) fn files(settings: &[(String, String)]) -> Vec<(String, String)> {
    let place = |name: &str| format!("helm/towpath/{name}");
    let mut all: Vec<(String, String)> = CHART
        .iter()
        .map(|(name, text)| {
            (
                place(name),
                text.replace("{version}", env!("CARGO_PKG_VERSION"))
                    .replace("{private4}", &serde_json::json!(PRIVATE_4).to_string())
                    .replace("{private6}", &serde_json::json!(PRIVATE_6).to_string()),
            )
        })
        .collect();
    all.extend(APPS.map(|app| (place(&format!("values-{app}.yaml")), values(app, settings))));
    all
}

fn values(app: &str, settings: &[(String, String)]) -> String {
    let mut text = format!("# The workloads of the {app} app.\n");
    let mut put = |part: String| text.push_str(&part);
    if !settings.is_empty() {
        put("env:\n".to_owned());
        for (name, value) in super::inside(settings) {
            put(format!("  {name}: {}\n", serde_json::json!(value)));
        }
    }
    put("workloads:\n".to_owned());
    let prefix = format!("{app}.");
    for one in WORKLOADS
        .iter()
        .filter(|one| one.roles.starts_with(&prefix))
    {
        put(workload(one, settings));
    }
    text
}

fn workload(one: &Workload, settings: &[(String, String)]) -> String {
    let mut text = format!(
        "  {}:\n    roles: {}\n    replicas: {}\n    env:\n",
        one.name, one.roles, one.replicas
    );
    let mut put = |part: std::fmt::Arguments<'_>| {
        text.write_fmt(part)
            .expect("writing to a string cannot fail");
    };
    for (name, value) in one.env {
        // Services of the chart have the release in their names.
        let value = WORKLOADS.iter().fold((*value).to_owned(), |value, other| {
            value.replace(
                &format!("//{}", other.name),
                &format!("//$(RELEASE){}", other.name),
            )
        });
        let value = value.replace(".fleet-worker-pods", ".$(RELEASE)fleet-worker-pods");
        put(format_args!("      {name}: {}\n", serde_json::json!(value)));
    }
    let mut secrets = one.secrets().peekable();
    if secrets.peek().is_some() {
        put(format_args!("    secrets:\n"));
    }
    for secret in secrets {
        put(format_args!("      - {secret}\n"));
    }
    if !one.ports.is_empty() {
        put(format_args!("    ports:\n"));
    }
    for (name, number) in one.ports {
        put(format_args!("      {name}: {number}\n"));
    }
    put(format_args!(
        "    egress:\n      public: {}\n",
        one.is_caller
    ));
    if !one.needs.is_empty() {
        put(format_args!("      ports:\n"));
    }
    for server in one.needs {
        put(format_args!("        - {}\n", server.port));
    }
    if let Some(scaled) = &one.scaled {
        let value = serde_json::json!(scaled.value(settings));
        put(format_args!(
            "    scale:\n      metric: {}\n      label: {}\n      value: {value}\n      target: {}\n      most: {}\n",
            scaled.metric, scaled.label, scaled.target, scaled.most
        ));
    }
    text
}
