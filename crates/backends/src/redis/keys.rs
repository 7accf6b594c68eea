//! The keys on the server. `docs/reference/redis.md` lists them.

use towpath_core::{Error, Result};

use super::config::Config;
use super::notify::Kind;
use super::servers::tag_of;

/// Prefix of our own keys, after the configured prefix; reserved.
pub(super) const RESERVED: &str = "towpath:";

/// The names of keys under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    /// Text before and after a name in its side keys. Both put the name's keys into one slot of a cluster.
    beside: (String, &'static str),
}

/// The keys of one queue or stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResourceKeys {
    /// The list of ready payloads, or the stream: its own name.
    pub(super) list: String,
    /// Prefix of the side keys.
    pub(super) side: String,
}

impl ResourceKeys {
    /// The queue's settings and counters.
    pub(super) fn queue(&self) -> String {
        format!("{}queue", self.side)
    }
}

impl Keys {
    /// # Errors
    /// `Invalid` for a prefix whose braces are not a hash tag.
    pub(super) fn new(config: &Config) -> Result<Self> {
        let prefix = config.prefix.clone();
        let tagged = tag_of(prefix.as_bytes()).is_some();
        let braces = prefix.matches(['{', '}']).count();
        if braces != if tagged { 2 } else { 0 } {
            return Err(Error::invalid(format!(
                "braces in `prefix={prefix}` are not a hash tag; expected e.g. `prefix={{app}}:`"
            )));
        }
        let before = if tagged {
            format!("{prefix}{RESERVED}{{")
        } else {
            format!("{RESERVED}{{{prefix}")
        };
        Ok(Self {
            prefix,
            beside: (before, "}:"),
        })
    }

    /// # Errors
    /// `Invalid` for a name with braces, which would change its slot in a cluster.
    pub(super) fn named(&self, name: &str) -> Result<ResourceKeys> {
        if name.contains(['{', '}']) || name.starts_with(RESERVED) {
            return Err(Error::invalid(format!(
                "invalid name `{name}` for redis; it must not have braces or start with `{RESERVED}`"
            )));
        }
        Ok(ResourceKeys {
            list: format!("{}{name}", self.prefix),
            side: format!("{}{name}{}", self.beside.0, self.beside.1),
        })
    }

    /// Arguments of scripts that find queues by name: prefix of the list, and text before and after the name in side keys.
    pub(super) fn parts(&self) -> [&str; 3] {
        [&self.prefix, &self.beside.0, self.beside.1]
    }

    /// The set of the names of all queues or streams.
    pub(super) fn names(&self, kind: Kind) -> String {
        let what = match kind {
            Kind::Queue => "queues",
            Kind::Stream => "streams",
        };
        format!("{}{RESERVED}{what}", self.prefix)
    }

    /// A key that never exists.
    pub(super) fn probe(&self) -> String {
        format!("{}{RESERVED}probe", self.prefix)
    }

    /// The set of an exchange's bindings.
    pub(super) fn bindings(&self, exchange: &str) -> String {
        format!("{}{RESERVED}bindings:{exchange}", self.prefix)
    }

    /// A limit's state.
    pub(super) fn limit(&self, key: &str) -> String {
        format!("{}token_bucket:{key}", self.prefix)
    }

    /// A user's key.
    ///
    /// # Errors
    /// `Invalid` for a key that is one of ours.
    pub(super) fn value(&self, key: &str) -> Result<String> {
        if key.starts_with(RESERVED) {
            return Err(Error::invalid(format!(
                "key `{key}` starts with the reserved prefix `{RESERVED}`"
            )));
        }
        Ok(format!("{}{key}", self.prefix))
    }

    /// The user's key again.
    pub(super) fn shown<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)
            .filter(|key| !key.starts_with(RESERVED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(prefix: &str) -> Result<Keys> {
        let url = format!("redis://h?prefix={prefix}");
        Keys::new(&Config::parse(&url).unwrap())
    }

    #[test]
    fn a_queues_keys_lie_together() {
        for (prefix, list, side) in [
            ("", "messages", "towpath:{messages}:"),
            ("app:", "app:messages", "towpath:{app:messages}:"),
            ("{app}:", "{app}:messages", "{app}:towpath:{messages}:"),
        ] {
            let found = keys(prefix).unwrap().named("messages").unwrap();
            assert_eq!((found.list.as_str(), found.side.as_str()), (list, side));
            assert_eq!(
                tag_of(list.as_bytes()).unwrap_or(list.as_bytes()),
                tag_of(side.as_bytes()).unwrap()
            );
        }
        for prefix in ["{", "{}", "a}b{", "{a}{b}"] {
            assert!(keys(prefix).is_err(), "{prefix}");
        }
        assert!(keys("").unwrap().named("a{b}").is_err());
    }
}
