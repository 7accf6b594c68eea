//! The rules as files of Prometheus.

use super::Rule;

/// Alerts on facts that only Prometheus sees, or sees better: a process that does not answer, and rates.
const OTHERS: &str = include_str!("alerts.yaml");
const OTHERS_TEST: &str = include_str!("alerts_test.yaml");

/// An alert for each rule, after those that need no rule.
pub fn alerts() -> String {
    let mut text = OTHERS.to_owned();
    for rule in Rule::all() {
        let (alert, name, hold) = (rule.alert(), rule.name(), rule.hold());
        let severity = rule.severity().as_str();
        text.push_str(&format!(
            r#"      - alert: {alert}
        expr: max by (problem, subject) (towpath_problem{{problem="{name}"}}) > 0
        for: {hold}
        labels: {{severity: {severity}}}
        annotations:
          summary: "{{{{ $labels.subject }}}}: {}"
          runbook: docs/runbook.md#{}
"#,
            summary(rule),
            alert.to_lowercase()
        ));
    }
    text
}

/// Tests of the alerts for `promtool`: each fires for its own problem after its time, not before, and not for one that
/// has ended by then.
pub fn alerts_test() -> String {
    let mut text = OTHERS_TEST.to_owned();
    for rule in Rule::all() {
        let (alert, name) = (rule.alert(), rule.name());
        let severity = rule.severity().as_str();
        let minutes: u32 = rule
            .hold()
            .trim_end_matches('m')
            .parse()
            .unwrap_or_default();
        text.push_str(&format!(
            r#"  - interval: 1m
    input_series:
      - {{series: 'towpath_problem{{problem="{name}", subject="s", instance="a"}}', values: '_x4 1x20'}}
      - {{series: 'towpath_problem{{problem="{name}", subject="s", instance="b"}}', values: '_x4 1x20'}}
      - {{series: 'towpath_problem{{problem="{name}", subject="ended", instance="a"}}', values: '_x4 1 stale'}}
      - {{series: 'towpath_problem{{problem="another", subject="s", instance="a"}}', values: '1x30'}}
    alert_rule_test:
      - {{eval_time: {}m, alertname: {alert}, exp_alerts: []}}
      - eval_time: {}m
        alertname: {alert}
        exp_alerts:
          - exp_labels: {{problem: {name}, subject: s, severity: {severity}}}
            exp_annotations: {{summary: "s: {}", runbook: docs/runbook.md#{}}}
"#,
            minutes + 3,
            minutes + 6,
            summary(rule),
            alert.to_lowercase()
        ));
    }
    text
}

fn summary(rule: Rule) -> String {
    rule.name().replace('_', " ")
}
