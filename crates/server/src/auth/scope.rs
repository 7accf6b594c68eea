//! Permissions of a key: `resource:verb`, or `resource:NAME:verb` for resources with names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result};

/// The scope that permits everything.
const ADMIN: &str = "admin";

/// Resources, whether a scope of one names which, and its verbs.
pub(super) const RESOURCES: [(&str, bool, &[&str]); 10] = [
    ("ingest", false, &["write"]),
    ("orders", false, &["read", "write"]),
    ("inventory", false, &["read", "write"]),
    ("users", false, &["read", "write"]),
    ("limits", false, &["read", "consume", "reset"]),
    ("fleet", false, &["read", "publish", "enroll"]),
    ("worker", false, &["read", "configure"]),
    ("tasks", false, &["read", "write"]),
    ("metrics", false, &["read"]),
    ("queue", true, &["read", "write", "lease", "admin"]),
];

/// One permission of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(Box<str>);

/// The requirement of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    resource: &'static str,
    verb: &'static str,
    /// Scopes of the resource name which one.
    is_named: bool,
}

impl Needed {
    /// Permitted by `resource:verb`.
    pub const fn new(resource: &'static str, verb: &'static str) -> Self {
        Self {
            resource,
            verb,
            is_named: false,
        }
    }

    /// Permitted by `resource:NAME:verb` with the name that the request is about.
    pub const fn named(resource: &'static str, verb: &'static str) -> Self {
        Self {
            resource,
            verb,
            is_named: true,
        }
    }

    /// Permitted by `admin` alone.
    pub const fn admin() -> Self {
        Self::new(ADMIN, "")
    }
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.verb, self.is_named) {
            ("", _) => f.write_str(self.resource),
            (verb, false) => write!(f, "{}:{verb}", self.resource),
            (verb, true) => write!(f, "{}:NAME:{verb}", self.resource),
        }
    }
}

impl Scope {
    /// The scope of operators.
    pub fn admin() -> Self {
        Self(ADMIN.into())
    }

    /// Whether a key with this scope may use a route that requires `needed`, for the resource with this name.
    ///
    /// Without a name the request is about all of them.
    pub fn covers(&self, needed: Needed, name: Option<&str>) -> bool {
        let mut parts = self.0.split(':');
        let resource = parts.next() == Some(needed.resource);
        match (parts.next(), parts.next()) {
            (None, None) => &*self.0 == ADMIN,
            (Some(verb), None) => resource && !needed.is_named && verb == needed.verb,
            (Some(own), Some(verb)) => {
                resource
                    && needed.is_named
                    && verb == needed.verb
                    && (own == "*" || Some(own) == name)
            }
            (None, Some(_)) => false,
        }
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |rule: String| Err(Error::invalid(format!("invalid scope `{text}`; {rule}")));
        if text == ADMIN {
            return Ok(Self::admin());
        }
        let parts: Vec<&str> = text.split(':').collect();
        let Some((_, has_name, verbs)) = RESOURCES.iter().find(|(name, ..)| *name == parts[0])
        else {
            let names: Vec<_> = RESOURCES.iter().map(|(name, ..)| *name).collect();
            let names = names.join(", ");
            return wrong(format!(
                "expected `admin` or one of {names} with a verb, like `ingest:write`"
            ));
        };
        let verb = match (has_name, parts.as_slice()) {
            (false, [_, verb]) => verb,
            (true, [_, name, verb]) if is_name(name) => verb,
            (false, _) => return wrong(format!("expected `{}:VERB`", parts[0])),
            (true, _) => {
                return wrong(format!(
                    "expected `{}:NAME:VERB`, `*` for any name",
                    parts[0]
                ));
            }
        };
        match verbs.contains(verb) {
            true => Ok(Self(text.into())),
            false => wrong(format!(
                "the verbs of `{}` are {}",
                parts[0],
                verbs.join(", ")
            )),
        }
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name == "*" || !name.is_empty() && name.bytes().all(plain)
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Scope {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_cover_their_routes() {
        let scope = |text: &str| text.parse::<Scope>().expect("a scope");
        let covers =
            |text: &str, resource, verb| scope(text).covers(Needed::new(resource, verb), None);
        assert!(covers("ingest:write", "ingest", "write"));
        assert!(covers("admin", "users", "read"));
        assert!(!covers("users:read", "users", "write"));
        assert!(!covers("queue:*:admin", "users", "write"));
        assert!(scope("admin").covers(Needed::admin(), None));
        assert!(!scope("users:write").covers(Needed::admin(), None));
        let lease = Needed::named("queue", "lease");
        for (text, name, expected) in [
            ("queue:mail:lease", Some("mail"), true),
            ("queue:mail:lease", Some("mails"), false),
            ("queue:mail:lease", None, false),
            ("queue:mail:read", Some("mail"), false),
            ("queue:*:lease", Some("mail"), true),
            ("queue:*:lease", None, true),
            ("admin", Some("mail"), true),
            ("ingest:write", Some("mail"), false),
        ] {
            assert_eq!(scope(text).covers(lease, name), expected, "{text} {name:?}");
        }
    }

    #[test]
    fn invalid_scopes_are_refused_with_the_rule() {
        for (text, rule) in [
            ("", "`admin` or one of"),
            ("user:read", "`admin` or one of"),
            ("users", "`users:VERB`"),
            ("users:*", "the verbs of `users` are read, write"),
            ("users:read:write", "`users:VERB`"),
            ("queue:lease", "`queue:NAME:VERB`"),
            ("queue::lease", "`queue:NAME:VERB`"),
            ("queue:a b:lease", "`queue:NAME:VERB`"),
            ("queue:*:*", "the verbs of `queue`"),
        ] {
            let error = text.parse::<Scope>().expect_err(text).to_string();
            assert!(error.contains(rule), "{error}");
        }
    }
}
