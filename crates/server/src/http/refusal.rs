//! Reasons for which a JSON body is invalid: the field, the rule and the value.

use serde::Deserialize;
use serde_json::Error;
use serde_json::error::Category;

use crate::config::did_you_mean;

/// Characters of a value that are repeated.
const SHOWN: usize = 40;

/// The reason for which reading the body as `T` failed with this error.
pub(super) fn reason<'a, T: Deserialize<'a>>(body: &'a [u8], error: &Error) -> String {
    if error.classify() != Category::Data {
        return format!("the body is not JSON: {}", syntax(error));
    }
    // Read again, because keeping the path of the field costs time.
    let mut json = serde_json::Deserializer::from_slice(body);
    let path = match serde_path_to_error::deserialize::<_, T>(&mut json) {
        Err(error) => error.path().to_string(),
        Ok(_) => String::new(),
    };
    shape(
        Some(&*path).filter(|path| !["", ".", "?"].contains(path)),
        error,
    )
}

/// The same for the value of a field.
pub(super) fn of_field(name: &str, error: &Error) -> String {
    shape(Some(name), error)
}

/// Its sentence without the position: "EOF while parsing an object" and "at line 1 column 2" are apart.
fn words(error: &Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&position).unwrap_or(&text).to_owned()
}

fn syntax(error: &Error) -> String {
    let words = words(error);
    let words = match words.strip_prefix("EOF while parsing ") {
        Some(part) => format!("it ends inside {part}"),
        None => words,
    };
    format!("{words} (line {}, column {})", error.line(), error.column())
}

/// From serde's "invalid type: integer `5`, expected a string": "`email` must be a string, not the number `5`".
fn shape(field: Option<&str>, error: &Error) -> String {
    let words = words(error);
    let mut quoted = words.split('`').skip(1).step_by(2);
    if words.starts_with("unknown field") {
        let name = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let hint = match did_you_mean(name, known.iter().copied()) {
            none if none.is_empty() && !known.is_empty() => {
                format!("; known: `{}`", known.join("`, `"))
            }
            hint => hint,
        };
        return format!("unknown field `{name}`{hint}");
    }
    if words.starts_with("missing field") {
        return format!("`{}` is required", quoted.next().unwrap_or_default());
    }
    if words.starts_with("duplicate field") {
        return format!("`{}` is given twice", quoted.next().unwrap_or_default());
    }
    let subject = field.map_or_else(|| "the body".to_owned(), |field| format!("`{field}`"));
    let mismatch = ["invalid type: ", "invalid value: "];
    let mut mismatch = mismatch
        .iter()
        .filter_map(|start| words.strip_prefix(start));
    match mismatch.find_map(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => {
            format!("{subject} must be {}, not {}", rule(expected), value(found))
        }
        None => format!("{subject}: {words}"),
    }
}

fn rule(expected: &str) -> &str {
    match expected {
        "a borrowed string" => "a string",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "`true` or `false`",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

fn value(found: &str) -> String {
    let short = |text: &str| match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    match found.split_once(' ') {
        Some(("integer", number)) => format!("the number {number}"),
        Some(("floating", rest)) => format!("the number {}", rest.trim_start_matches("point ")),
        Some(("string", text)) => format!("the string {}", short(text)),
        Some(("boolean", value)) => value.to_owned(),
        _ => match found {
            "sequence" => "a list".to_owned(),
            "map" => "an object".to_owned(),
            other => other.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::http::json::{Object, object};

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Sample {
        name: String,
        port: Option<u16>,
        plan: Option<Object<Plan>>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only read by serde")]
    struct Plan {
        steps: Vec<String>,
        share: Option<f64>,
        is_on: Option<bool>,
    }

    #[test]
    fn reasons_name_the_field_and_the_rule() {
        for (body, expected) in [
            (
                r#"{"name":5}"#,
                "`name` must be a string, not the number `5`",
            ),
            (r#"{"NAME":[]}"#, "`NAME` must be a string, not a list"),
            (r#"{"name":null}"#, "`name` must be a string, not null"),
            (
                r#"{"name":"a","port":-1}"#,
                "`port` must be a whole number from 0, not the number `-1`",
            ),
            (
                r#"{"name":"a","port":"80"}"#,
                r#"`port` must be a whole number from 0, not the string "80""#,
            ),
            (
                r#"{"name":"a","plan":{"steps":"10%"}}"#,
                r#"`plan.steps` must be a list, not the string "10%""#,
            ),
            (
                r#"{"name":"a","plan":{"steps":["a",{}]}}"#,
                "`plan.steps[1]` must be a string, not an object",
            ),
            (
                r#"{"name":"a","plan":{"steps":[],"share":true}}"#,
                "`plan.share` must be a number, not `true`",
            ),
            (
                r#"{"name":"a","plan":{"steps":[],"is_on":1.5}}"#,
                "`plan.is_on` must be `true` or `false`, not the number `1.5`",
            ),
            (
                r#"{"name":"a","plan":["10%"]}"#,
                "`plan` must be an object, not a list",
            ),
            ("[]", "the body must be an object, not a list"),
            ("null", "the body must be an object, not null"),
            ("{}", "`name` is required"),
            (r#"{"name":"a","name":"b"}"#, "`name` is given twice"),
            (
                r#"{"nam":"a"}"#,
                "unknown field `nam`; did you mean `name`?",
            ),
            (
                r#"{"colour":1}"#,
                "unknown field `colour`; known: `name`, `port`, `plan`",
            ),
            (
                "{",
                "the body is not JSON: it ends inside an object (line 1, column 1)",
            ),
            (
                "{name",
                "the body is not JSON: key must be a string (line 1, column 2)",
            ),
            (
                "",
                "the body is not JSON: it ends inside a value (line 1, column 0)",
            ),
        ] {
            let refusal = object::<Sample>(body.as_bytes()).unwrap_err();
            assert_eq!(refusal.reason, expected, "{body}");
        }
        let long = format!(r#"{{"name":"a","port":"{}"}}"#, "é".repeat(100));
        let refusal = object::<Sample>(long.as_bytes()).unwrap_err();
        assert!(refusal.reason.ends_with("ééé…"), "{}", refusal.reason);
    }
}
