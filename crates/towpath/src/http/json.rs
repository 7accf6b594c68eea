//! Bodies that are JSON objects.

use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::config::did_you_mean;

/// What an object says. A derived struct alone would take a list as well, field by field.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

/// Reads a body that must be an object.
///
/// # Errors
/// With the reason, and for an unknown field with the known one that is written most like it.
pub fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    let read: Result<Object<T>, _> = serde_json::from_slice(body);
    read.map(|object| object.0)
        .map_err(|error| with_suggestion(error.to_string()))
}

/// Adds the suggestion to serde's sentence: "unknown field `a`, expected one of `b`, `c` at line 1 column 2".
fn with_suggestion(reason: String) -> String {
    if !reason.starts_with("unknown field") {
        return reason;
    }
    let mut quoted = reason.split('`').skip(1).step_by(2);
    let field = quoted.next().unwrap_or_default();
    let suggestion = did_you_mean(field, quoted);
    reason + &suggestion
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        rollout: Option<Object<Plan>>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Plan {
        steps: Vec<String>,
    }

    #[test]
    fn only_objects_are_objects_at_any_depth() {
        let asked: Asked = object(br#"{"rollout":{"steps":["10%"]}}"#).expect("an object");
        assert_eq!(asked.rollout.expect("a plan").0.steps, ["10%"]);
        for wrong in [
            &br#"[{"steps":["10%"]}]"#[..],
            br#"{"rollout":[["10%"]]}"#,
            b"null",
        ] {
            let reason = object::<Asked>(wrong).expect_err("not an object");
            assert!(reason.contains("expected an object"), "{reason}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_known_one() {
        let reason = object::<Asked>(br#"{"rolout":{}}"#).expect_err("unknown");
        assert!(reason.ends_with("did you mean `rollout`?"), "{reason}");
        let reason = object::<Asked>(br#"{"colour":1}"#).expect_err("unknown");
        assert!(!reason.contains("did you mean"), "{reason}");
    }
}
