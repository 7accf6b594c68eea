//! The table of keys in other forms: a commented file, a JSON Schema, a page, and the origin of each value.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::key::{KEYS, Key};
use super::load::Setting;
use super::queues;
use super::{Kind, Loaded, Origin};

/// A `towpath.toml` with every key, commented out, at its default.
pub fn commented_file() -> String {
    let mut text = String::from(
        "# Everything here is optional; each line shows the default, \"\" and [] mean \"not set\".\n",
    );
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
            None if matches!(key.kind, Kind::Strings | Kind::Limits) => "[]".to_owned(),
            // The empty text means "not set", for numbers too.
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
    if let Some(Value::Object(properties)) = root.get_mut("properties") {
        properties.insert(queues::SECTION.to_owned(), queues::schema());
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
            if key.kind.may_be_secret() {
                let description = format!("Path of a file that holds `{}`.", key.path);
                let file = json!({"type": "string", "description": description});
                properties.insert(format!("{path}_file"), file);
            }
        }
    }
}

fn leaf(key: &Key) -> Value {
    let mut leaf = match key.kind {
        Kind::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Size(..) => json!({"type": ["string", "integer"]}),
        Kind::Choice(words) => json!({"enum": words}),
        Kind::Strings | Kind::Limits => json!({"type": "array", "items": {"type": "string"}}),
        _ => json!({"type": "string"}),
    };
    if key.is_optional() && matches!(key.kind, Kind::Integer(..)) {
        leaf = json!({"anyOf": [leaf, {"const": ""}]});
    }
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
         An empty variable counts as not set; a file `.env` in the working directory sets those that the environment does not, `TOWPATH_URL` and `TOWPATH_TOKEN` of the commands included.\n\
         An invalid variable of an app none of whose roles run is a warning; a variable `TOWPATH_…` that no key has is an error when it is nearly the name of one, and a warning otherwise.\n\
         In the file `${NAME}` and `${NAME:-default}` stand for variables.\n\
         An empty text, or an empty list, in the file means \"not set\" for a key without a default.\n\
         A secret or a URL may come from a file of its own, which `KEY_file` in the file or `TOWPATH_SECTION__KEY_FILE` names; secrets are never shown.\n\
         Reserved characters in the user, password, path and parameters of a URL must be percent-encoded: `/` as `%2F`, `?` as `%3F`, `#` as `%23`, `@` as `%40`, `,` as `%2C`, `%` as `%25`. Parts in variables of their own, such as `DB_PASSWORD`, are encoded by Towpath.\n\
         The files `DB_PASSWORD_FILE`, `REDIS_PASSWORD_FILE` and `TOWPATH_TOKEN_FILE` name hold those secrets.\n\
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
    page.push_str(queues::PAGE);
    page
}

/// Key, value and origin of everything; secrets hidden.
pub fn origins_table(loaded: &Loaded) -> Vec<[String; 3]> {
    KEYS.iter().map(|key| row(key, &loaded.settings)).collect()
}

fn row(key: &Key, settings: &BTreeMap<&'static str, Setting>) -> [String; 3] {
    let setting = settings.get(key.path);
    let shown = match setting.and_then(|setting| setting.text.as_deref()) {
        Some(text) => key.shown(text),
        None => "-".to_owned(),
    };
    let origin = setting.map_or(&Origin::Default, |setting| &setting.origin);
    [key.path.to_owned(), shown, origin.to_string()]
}
