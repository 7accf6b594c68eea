//! Bodies that are JSON objects.
//!
//! Names of fields match without regard to case, as in the reference systems: serialisers of several languages write
//! them in their own.

use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::refusal;

/// Reads an object. A derived struct alone would take a list as well, field by field.
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
        T::deserialize(Caseless(fields))
    }
}

/// Gives a struct its fields under the names that it knows them by.
struct Caseless<A>(A);

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Caseless<A> {
    type Error = A::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        visitor.visit_map(KnownFields {
            fields: self.0,
            known,
        })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        MapAccessDeserializer::new(self.0).deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        MapAccessDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct KnownFields<A> {
    fields: A,
    known: &'static [&'static str],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for KnownFields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some(name) = self.fields.next_key::<String>()? else {
            return Ok(None);
        };
        let mut known = self.known.iter();
        let name = match known.find(|known| known.eq_ignore_ascii_case(&name)) {
            Some(known) => (*known).to_owned(),
            None => name,
        };
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.fields.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.fields.size_hint()
    }
}

/// Why a body is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// It is JSON, of another shape.
    pub is_json: bool,
    /// A sentence that names the field, the rule and the value.
    pub reason: String,
}

/// Reads a body of any shape.
///
/// # Errors
/// See [`Refusal`].
pub fn value<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal {
        is_json: error.classify() == Category::Data,
        reason: refusal::reason::<T>(body, &error),
    })
}

/// Reads the value of a field.
///
/// # Errors
/// See [`Refusal`].
pub fn field<'a, T: Deserialize<'a>>(name: &str, value: &'a RawValue) -> Result<T, Refusal> {
    serde_json::from_str(value.get()).map_err(|error| Refusal {
        is_json: true,
        reason: refusal::of_field(name, &error),
    })
}

/// Reads a body that must be an object.
///
/// # Errors
/// See [`Refusal`].
pub fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    value::<Object<T>>(body).map(|object| object.0)
}

/// The fields of an object as they are written, for apps that serve existing clients.
#[derive(Debug, Default)]
pub struct Loose<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Loose<'a> {
    /// The value of the last field of this name, without regard to case.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.0.iter().rev();
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name))?;
        Some(found.1)
    }
}

impl<'de> Deserialize<'de> for Loose<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LooseFields)
    }
}

struct LooseFields;

impl<'de> Visitor<'de> for LooseFields {
    type Value = Loose<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Loose(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        rollout: Option<Object<Plan>>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Plan {
        steps: Vec<String>,
    }

    #[test]
    fn only_objects_are_objects_at_any_depth() {
        let sample: Sample = object(br#"{"rollout":{"steps":["10%"]}}"#).expect("an object");
        assert_eq!(sample.rollout.expect("a plan").0.steps, ["10%"]);
        for wrong in [
            &br#"[{"steps":["10%"]}]"#[..],
            br#"{"rollout":[["10%"]]}"#,
            b"null",
        ] {
            let refusal = object::<Sample>(wrong).expect_err("not an object");
            assert!(refusal.is_json && refusal.reason.contains("must be an object"));
        }
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_known_one() {
        let refused = |text: &'static str| object::<Sample>(text.as_bytes()).expect_err("refused");
        let reason = refused(r#"{"rolout":{}}"#).reason;
        assert!(reason.ends_with("did you mean `rollout`?"), "{reason}");
        let reason = refused(r#"{"colour":1}"#).reason;
        assert!(!reason.contains("did you mean"), "{reason}");
        assert!(!refused("{").is_json);
    }

    #[test]
    fn names_of_fields_match_without_regard_to_case() {
        let sample: Sample = object(br#"{"ROLLOUT":{"Steps":["10%"]}}"#).expect("an object");
        assert_eq!(sample.rollout.expect("a plan").0.steps, ["10%"]);
        object::<Sample>(br#"{"rollout":null,"Rollout":null}"#).expect_err("given twice");
        let text = br#"{"a":1,"A":2,"b":3}"#;
        let loose: Loose<'_> = value(text).expect("an object");
        assert_eq!(loose.get("a").map(RawValue::get), Some("2"));
        assert!(loose.get("c").is_none());
        value::<Loose<'_>>(b"[1]").expect_err("a list");
    }
}
