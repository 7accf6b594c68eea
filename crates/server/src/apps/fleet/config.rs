//! A configuration as it travels between controller, agent and worker.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_core::port::fleet::{Epoch, Published};
use towpath_core::{Error, Result};
use uuid::Uuid;

use super::proof::{Proof, PublicKey};
use crate::http::preconditions::{Preconditions, Unmet};

/// Poll interval of agents unless the configuration sets one. Source: the reference system.
pub(super) const POLL_SECONDS: u32 = 30;

/// A configuration: the fields of the reference system, and ours, which it ignores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) id: String,
    #[serde(default)]
    pub(super) version: u64,
    #[serde(default)]
    pub(super) data: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) poll_interval_seconds: u32,
    /// The line of versions that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) author: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rolls_back_to: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
    /// By which the controller recognises its own configurations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) signature: Option<String>,
    /// By which agents and workers recognise the configurations of their controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) proof: Option<Proof>,
}

impl Config {
    /// The names of its fields.
    pub(super) const FIELDS: &[&str] = &[
        "id",
        "version",
        "data",
        "poll_interval_seconds",
        "epoch",
        "schema",
        "author",
        "rolls_back_to",
        "created_at",
        "signature",
        "proof",
    ];

    /// The published configuration, signed.
    pub(super) fn of(published: &Published, epoch: &Epoch) -> Result<Self> {
        let corrupt = |error| Error::corrupt("stored configuration is not JSON").with_source(error);
        let schema = published.schema.as_deref().map(serde_json::from_str);
        let mut config = Self {
            id: published.id.to_string(),
            version: published.version,
            data: serde_json::from_str(&published.data).map_err(corrupt)?,
            poll_interval_seconds: published.poll_seconds,
            epoch: Some(epoch.name.clone()),
            schema: schema.transpose().map_err(corrupt)?,
            author: Some(published.author.clone()),
            rolls_back_to: published.rolls_back_to,
            created_at: Some(published.created_at.to_string()),
            signature: None,
            proof: None,
        };
        config.proof = Some(Proof::sign(epoch, &config.signed())?);
        config.signature = Some(hex::encode(
            hmac::sign(&key(epoch), &config.signed()).as_ref(),
        ));
        Ok(config)
    }

    /// The previously published configuration, if this is it.
    pub(super) fn restored(&self, epoch: &Epoch) -> Option<Published> {
        let signature = self.signature.as_deref()?;
        let bytes: Option<Vec<u8>> = (0..signature.len() / 2)
            .map(|at| u8::from_str_radix(signature.get(at * 2..at * 2 + 2)?, 16).ok())
            .collect();
        hmac::verify(&key(epoch), &self.signed(), &bytes?).ok()?;
        Some(Published {
            version: self.version,
            id: Uuid::parse_str(&self.id).ok()?,
            data: serde_json::to_string(&self.data).ok()?,
            poll_seconds: self.poll_interval_seconds,
            schema: self.schema.as_ref().map(Value::to_string),
            author: self.author.clone()?,
            rolls_back_to: self.rolls_back_to,
            created_at: self.created_at.as_deref()?.parse::<Timestamp>().ok()?,
        })
    }

    /// Strong, and other for another content even if the version is the same. Behind it the version alone, by which
    /// existing agents name it.
    pub(super) fn tags(&self) -> [String; 2] {
        let hash = hex::encode(digest(&SHA256, &self.signed()).as_ref());
        let epoch = self.epoch.as_deref().unwrap_or("0");
        let tag = format!("{epoch}.{}-{}", self.version, &hash[..12]);
        [tag, self.version.to_string()]
    }

    /// Its tag, as headers have it.
    pub(super) fn etag(&self) -> String {
        let [tag, _] = self.tags();
        format!("\"{tag}\"")
    }

    /// A client's precondition.
    ///
    /// # Errors
    /// The precondition that it does not meet.
    pub(super) fn check(&self, preconditions: &Preconditions) -> std::result::Result<(), Unmet> {
        let [tag, version] = self.tags();
        preconditions.check(Some(&[tag.as_str(), version.as_str()]))
    }

    /// Whether it is an older one of the same line of versions.
    ///
    /// Without an epoch a configuration belongs to no line of which anything is known: a reference controller begins
    /// at version 1 again with a new database, and a controller of ours begins at version 1 after a reference one.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.epoch.is_some() && self.epoch == other.epoch && self.version < other.version
    }

    /// Whether a worker that keeps `kept` runs this configuration. A reference worker keeps neither epoch nor schema.
    pub(super) fn is_kept_as(&self, kept: &Self) -> bool {
        let is_same_line = kept.epoch.is_none() || kept.epoch == self.epoch;
        let is_same_content = kept.data == self.data
            && kept.poll_interval_seconds == self.poll_interval_seconds
            && kept.id == self.id;
        is_same_line && is_same_content && kept.version == self.version
    }

    /// The version, and whose it is, for people.
    pub(super) fn title(&self) -> String {
        match &self.epoch {
            Some(epoch) => format!("version {} of epoch `{epoch}`", self.version),
            None => format!("version {} without an epoch", self.version),
        }
    }

    /// Whether the controller with this key published it.
    ///
    /// # Errors
    /// `Invalid` when it did not.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<()> {
        key.verify(self.proof.as_ref(), &self.signed())
    }

    /// Everything but the signatures, always in the same words.
    fn signed(&self) -> Vec<u8> {
        let unsigned = Self {
            signature: None,
            proof: None,
            ..self.clone()
        };
        serde_json::to_vec(&unsigned).unwrap_or_default()
    }
}

fn key(epoch: &Epoch) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, epoch.secret.as_bytes())
}

/// Whether data follows a schema; the first things that do not otherwise.
pub(super) fn follows(
    data: &BTreeMap<String, String>,
    schema: &Value,
) -> std::result::Result<(), String> {
    let validator = jsonschema::validator_for(schema)
        .map_err(|error| format!("invalid JSON Schema: {error}"))?;
    let data = serde_json::to_value(data).unwrap_or(Value::Null);
    let wrong: Vec<String> = validator
        .iter_errors(&data)
        .take(5)
        .map(|error| match error.instance_path().as_str() {
            "" => error.to_string(),
            path => format!("{path}: {error}"),
        })
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "the data does not follow the schema: {}",
            wrong.join("; ")
        )),
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the controller's clock makes this time"
)]
mod tests {
    use serde_json::json;

    use super::*;

    fn epoch() -> Epoch {
        Epoch {
            name: "e".to_owned(),
            secret: "s".to_owned(),
        }
    }

    fn published(version: u64) -> Published {
        Published {
            version,
            id: Uuid::now_v7(),
            data: r#"{"url":"http://x/"}"#.to_owned(),
            poll_seconds: 30,
            schema: Some(r#"{"type":"object"}"#.to_owned()),
            author: "me".to_owned(),
            rolls_back_to: None,
            created_at: Timestamp::now(),
        }
    }

    #[test]
    fn a_returned_configuration_is_verified_by_its_signature() {
        let first = published(3);
        let config = Config::of(&first, &epoch()).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        let back: Config = serde_json::from_str(&text).unwrap();
        assert_eq!(back.restored(&epoch()), Some(first));
        let mut changed = back.clone();
        changed
            .data
            .insert("url".to_owned(), "http://evil/".to_owned());
        assert_eq!(changed.restored(&epoch()), None);
        let other = Epoch {
            secret: "other".to_owned(),
            ..epoch()
        };
        assert_eq!(back.restored(&other), None);
        let unsigned = Config {
            signature: None,
            ..back
        };
        assert_eq!(unsigned.restored(&epoch()), None);
    }

    #[test]
    fn a_proof_is_of_one_controller_and_one_content() {
        let config = Config::of(&published(3), &epoch()).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        let config: Config = serde_json::from_str(&text).unwrap();
        let proof = config.proof.clone().expect("a proof");
        let key = PublicKey::parse(&proof.public_key).expect("a key");
        config.verify(&key).unwrap();
        // The other signature is not part of it.
        let bare = Config {
            signature: None,
            ..config.clone()
        };
        bare.verify(&key).unwrap();
        let mut changed = config.clone();
        changed.version += 1;
        let without = Config {
            proof: None,
            ..config.clone()
        };
        let other = Epoch {
            secret: "other".to_owned(),
            ..epoch()
        };
        let forged = Config::of(&published(3), &other).unwrap();
        let relabelled = Config {
            proof: forged.proof.clone().map(|forged| Proof {
                public_key: proof.public_key,
                ..forged
            }),
            ..forged.clone()
        };
        for wrong in [changed, without, forged, relabelled] {
            assert!(wrong.verify(&key).is_err(), "{wrong:?}");
        }
        for text in ["", "AAAA", "not base64!"] {
            assert_eq!(PublicKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_tag_names_content_and_a_bare_version_works() {
        let config = Config::of(&published(3), &epoch()).unwrap();
        let [tag, _] = config.tags();
        let has_it = |value: &str| {
            let value = value.parse().expect("a header value");
            let headers = http::HeaderMap::from_iter([(http::header::IF_NONE_MATCH, value)]);
            config.check(&Preconditions::of(&headers)).is_err()
        };
        for named in [
            &format!("\"{tag}\""),
            "3",
            "\"3\"",
            "W/\"3\"",
            "\"1\", 3",
            "*",
            &format!("W/\"{tag}\""),
        ] {
            assert!(has_it(named), "{named}");
        }
        for other in ["", "4", "\"e.3-000000000000\"", "33"] {
            assert!(!has_it(other), "{other}");
        }
        let mut changed = config.clone();
        changed.data.clear();
        assert_ne!(changed.tags()[0], tag);
    }

    #[test]
    fn only_versions_of_one_line_have_an_order() {
        let config = |version, epoch: Option<&str>| Config {
            version,
            epoch: epoch.map(str::to_owned),
            ..serde_json::from_str("{}").unwrap()
        };
        assert!(config(1, Some("a")).is_before(&config(2, Some("a"))));
        assert!(!config(1, Some("b")).is_before(&config(2, Some("a"))));
        // Without an epoch it is another line, whichever side lacks it.
        assert!(!config(1, None).is_before(&config(2, Some("a"))));
        assert!(!config(1, Some("a")).is_before(&config(2, None)));
        assert!(!config(1, None).is_before(&config(2, None)));
        assert!(!config(2, Some("a")).is_before(&config(2, Some("a"))));
    }

    #[test]
    fn a_worker_runs_its_stored_configuration_with_or_without_our_fields() {
        let config = Config::of(&published(3), &epoch()).unwrap();
        let kept = Config {
            epoch: None,
            schema: None,
            signature: None,
            ..config.clone()
        };
        assert!(config.is_kept_as(&config) && config.is_kept_as(&kept));
        let others = [
            Config {
                id: Uuid::now_v7().to_string(),
                ..kept.clone()
            },
            Config {
                version: 2,
                ..kept.clone()
            },
            Config {
                data: BTreeMap::new(),
                ..kept.clone()
            },
            Config {
                epoch: Some("other".to_owned()),
                ..kept
            },
        ];
        for other in others {
            assert!(!config.is_kept_as(&other), "{other:?}");
        }
    }

    #[test]
    fn data_follows_its_schema_or_says_where_not() {
        let data = BTreeMap::from([("url".to_owned(), "x".to_owned())]);
        let schema = json!({ "properties": { "url": { "minLength": 3 } }, "required": ["name"] });
        let wrong = follows(&data, &schema).unwrap_err();
        assert!(wrong.contains("/url") && wrong.contains("name"), "{wrong}");
        follows(&data, &json!({ "type": "object" })).unwrap();
        assert!(
            follows(&data, &json!({ "type": 7 }))
                .unwrap_err()
                .contains("JSON Schema")
        );
    }
}
