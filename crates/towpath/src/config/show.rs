//! The table of keys in other forms: a commented file, a JSON Schema, a page, and who said what.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::key::{KEYS, Key};
use super::load::{Origin, Setting};
use super::{Kind, Loaded};

/// A `towpath.toml` with every key, commented out, at its default.
pub fn commented_file() -> String {
    let mut text = String::from("# Everything here is optional; each line shows the default.\n");
    let mut section = "";
    for key in KEYS {
        let (this, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if this != section {
            write!(text, "\n[{this}]\n").expect("writing to a string cannot fail");
            section = this;
        }
        let value = match key.default {
            Some(default) if matches!(key.kind, Kind::Integer(..)) => default.to_owned(),
            Some(default) => format!("{default:?}"),
            None if key.kind == Kind::Strings => "[]".to_owned(),
            None => "\"\"".to_owned(),
        };
        writeln!(text, "# {}\n# {name} = {value}", key.doc)
            .expect("writing to a string cannot fail");
    }
    text
}

/// JSON Schema, draft 2020-12, for editors.
pub fn json_schema() -> Value {
    let mut root = object();
    root.insert(
        "$schema".to_owned(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    root.insert("title".to_owned(), json!("towpath.toml"));
    for key in KEYS {
        insert(&mut root, key.path, key);
    }
    Value::Object(root)
}

fn object() -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("type".to_owned(), json!("object"));
    map.insert("additionalProperties".to_owned(), json!(false));
    map.insert("properties".to_owned(), json!({}));
    map
}

fn insert(into: &mut Map<String, Value>, path: &str, key: &Key) {
    let Some(Value::Object(properties)) = into.get_mut("properties") else {
        return;
    };
    match path.split_once('.') {
        Some((section, rest)) => {
            let inner = properties
                .entry(section)
                .or_insert_with(|| Value::Object(object()));
            if let Value::Object(inner) = inner {
                insert(inner, rest, key);
            }
        }
        None => {
            properties.insert(path.to_owned(), leaf(key));
        }
    }
}

fn leaf(key: &Key) -> Value {
    let mut leaf = match key.kind {
        Kind::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Size(..) => json!({"type": ["string", "integer"]}),
        Kind::Choice(words) => json!({"enum": words}),
        Kind::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Url => json!({"type": "string", "format": "uri"}),
        Kind::Text | Kind::Secret | Kind::Duration(..) | Kind::Address => json!({"type": "string"}),
    };
    leaf["description"] = json!(format!("{} Must be {}.", key.doc, key.kind.expected()));
    if let Some(default) = key.default {
        leaf["default"] = default
            .parse::<u64>()
            .map_or_else(|_| json!(default), |number| json!(number));
    }
    leaf
}

/// The reference page.
pub fn reference_page() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         A value is looked for in this order: flag (`--set KEY=VALUE`), `TOWPATH_SECTION__KEY`, the variable in the table, `towpath.toml`, default.\n\
         An empty variable counts as not set.\n\
         In the file `${NAME}` and `${NAME:-default}` stand for variables.\n\
         A secret may come from a file that `TOWPATH_SECTION__KEY_FILE` names, and is never shown.\n\
         `towpath config check` names every problem at once, `towpath config show --origin` says where each value came from.\n\n\
         | key | default | variable | must be | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for key in KEYS {
        let default = key
            .default
            .map_or_else(|| "none".to_owned(), |default| format!("`{default}`"));
        let variables: Vec<String> = key
            .variables
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let row = format!(
            "| `{}` | {default} | {} | {} | {} |\n",
            key.path,
            variables.join(", "),
            key.kind.expected(),
            key.doc
        );
        page.push_str(&row);
    }
    page
}

/// Key, value and origin of everything; secrets hidden.
pub fn origins_table(loaded: &Loaded) -> Vec<[String; 3]> {
    KEYS.iter().map(|key| row(key, &loaded.settings)).collect()
}

fn row(key: &Key, settings: &BTreeMap<&'static str, Setting>) -> [String; 3] {
    let setting = settings.get(key.path);
    let shown = match setting.and_then(|setting| setting.text.as_deref()) {
        Some(_) if key.kind == Kind::Secret => "***".to_owned(),
        Some(text) => redact(text),
        None => "-".to_owned(),
    };
    let origin = match setting.map(|setting| &setting.origin) {
        Some(Origin::File(place)) => place.clone(),
        Some(Origin::Variable(name)) => name.clone(),
        Some(Origin::Flag(name)) => name.clone(),
        Some(Origin::Default) | None => "default".to_owned(),
    };
    [key.path.to_owned(), shown, origin]
}

/// Hides the credentials of every URL of a comma list.
pub(super) fn redact(text: &str) -> String {
    let one = |url: &str| {
        let hidden = url.split_once("://").and_then(|(scheme, rest)| {
            let (credentials, host) = rest.rsplit_once('@')?;
            let user = credentials.split_once(':').map_or("", |(user, _)| user);
            Some(format!("{scheme}://{user}:***@{host}"))
        });
        hidden.unwrap_or_else(|| url.to_owned())
    };
    text.split(',').map(one).collect::<Vec<_>>().join(",")
}
