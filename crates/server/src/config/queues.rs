//! `[queues.NAME]`: queues that the configuration declares, in the words of the admin API.

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;
use towpath_core::QueueName;
use towpath_core::port::queue::Settings;

use super::file::Reader;
use super::source_span::SourceSpan;
use crate::http::json;
use crate::queue_settings::QueueSettings;

/// The name of the section.
pub(super) const SECTION: &str = "queues";

/// A declared queue.
pub(super) struct DeclaredQueue {
    pub(super) name: QueueName,
    pub(super) settings: Settings,
    pub(super) place: SourceSpan,
}

impl Reader<'_> {
    /// Reads the section.
    pub(super) fn read_queues(&mut self, section: &Spanned<DeValue<'_>>) {
        let DeValue::Table(queues) = section.get_ref() else {
            let message =
                format!("`{SECTION}` is a section, not a value; write `[{SECTION}.NAME]`");
            return self.problem(&section.span(), message);
        };
        for (name, settings) in queues {
            let span = name.span();
            let title = format!("{SECTION}.{}", name.get_ref());
            if !matches!(settings.get_ref(), DeValue::Table(_)) {
                let message = format!("`{title}` is a section, not a value; write `[{title}]`");
                self.problem(&span, message);
                continue;
            }
            let Some(value) = self.json(settings) else {
                continue;
            };
            let read = json::object::<QueueSettings>(value.to_string().as_bytes())
                .map_err(|refusal| refusal.reason)
                .and_then(|settings| {
                    let name = QueueName::new(name.get_ref());
                    let name = name.map_err(|error| error.to_string())?;
                    let settings = Settings::try_from(settings);
                    Ok((name, settings.map_err(|error| error.to_string())?))
                });
            match read {
                Ok((name, settings)) => {
                    let place = self.place(&span);
                    self.queues.push(DeclaredQueue {
                        name,
                        settings,
                        place,
                    });
                }
                Err(reason) => self.problem(&span, format!("`{title}`: {reason}")),
            }
        }
    }

    /// The value as JSON, with variables put in; `None` when one is missing.
    fn json(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        Some(match value.get_ref() {
            DeValue::String(text) => json!(self.interpolate(text, &value.span())?),
            DeValue::Integer(number) => {
                let digits = number.as_str().replace('_', "");
                match i64::from_str_radix(&digits, number.radix()) {
                    Ok(number) => json!(number),
                    Err(_) => json!(digits),
                }
            }
            DeValue::Float(number) => json!(number.as_str().parse::<f64>().ok()),
            DeValue::Boolean(value) => json!(value),
            DeValue::Datetime(moment) => json!(moment.to_string()),
            DeValue::Array(list) => {
                let list = list.iter().map(|value| self.json(value));
                Value::Array(list.collect::<Option<_>>()?)
            }
            DeValue::Table(table) => {
                let members = table
                    .iter()
                    .map(|(name, value)| Some((name.get_ref().to_string(), self.json(value)?)));
                Value::Object(members.collect::<Option<_>>()?)
            }
        })
    }
}

/// The section in the JSON Schema of the file.
pub(super) fn schema() -> Value {
    let duration = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "Queues, by name. The admin API does not change them.",
        "additionalProperties": {
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "retry": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "attempts": {
                            "type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 25,
                            "description": "Attempts before a message becomes a dead letter.",
                        },
                        "first": duration("Maximum delay after the first attempt; doubles with each attempt."),
                        "max": duration("Maximum delay after any attempt."),
                    },
                },
                "idempotency_window": duration("Retention of an idempotency key."),
                "max_depth": {
                    "type": "integer", "minimum": 1,
                    "description": "Maximum waiting messages; further messages get 429.",
                },
            },
        },
    })
}

/// The section in the reference page.
pub(super) const PAGE: &str = "\n## Queues\n\n\
     `[queues.NAME]` declares a queue with the members of `PUT /v1/queues/NAME` ([jobs.md](jobs.md)); a missing member has its default.\n\
     The queue is created at the start of each process with a backend for queues, on the first of them.\n\
     The admin API refuses to change or delete it with 409.\n\n\
     | key | default | must be | meaning |\n| --- | --- | --- | --- |\n\
     | `queues.NAME.retry.attempts` | `25` | a whole number from 1 to 1000000 | Attempts before a message becomes a dead letter. |\n\
     | `queues.NAME.retry.first` | `1s` | a duration up to `24h` | Maximum delay after the first attempt; doubles with each attempt. |\n\
     | `queues.NAME.retry.max` | `6h` | a duration up to `24h` | Maximum delay after any attempt. |\n\
     | `queues.NAME.idempotency_window` | `24h` | a duration from `1s` to `8760h` | Retention of an idempotency key. |\n\
     | `queues.NAME.max_depth` | none | a whole number from 1 | Maximum waiting messages; further messages get 429. |\n";
