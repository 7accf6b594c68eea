//! A named rule, as configuration writes it.
//!
//! `login=token_bucket:5:1/1m` holds five tokens and gains one a minute; `search=sliding_window:100/1h` allows a hundred
//! in any hour. A suffix decides while the store is unavailable: `:fail_closed`, `:fail_open` or `:local`.

use std::collections::BTreeMap;
use std::time::Duration;

use towpath_core::limiter::{Amount, Policy};
use towpath_core::{Error, Result};

/// Decision of a limit while its store does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Refuse with 503: the limit is never passed.
    Closed,
    /// Allow: requests pass without the limit.
    Open,
    /// Decide in this process alone: each process allows the whole limit.
    Local,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name, in metrics too, or the route that it limits.
    pub name: String,
    /// Amount and rate.
    pub policy: Policy,
    /// Behaviour while the store is unavailable.
    pub on_failure: OnFailure,
}

/// Rules by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(BTreeMap<String, Rule>);

/// The rule that counts when a request names none.
const DEFAULT: &str = "default";

impl Rules {
    /// The rules in these texts; the one called `default` is the reference system's unless it is among them.
    ///
    /// # Errors
    /// `Invalid` for an invalid rule, or a second one with the same name.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut rules = BTreeMap::new();
        for text in texts {
            let (name, rule) = text
                .split_once('=')
                .ok_or_else(|| wrong(text, "it has no `=`"))?;
            let is_name = |name: &str| {
                let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                !name.is_empty() && name.len() <= 64 && name.bytes().all(valid)
            };
            if !is_name(name) {
                let reason = "its name has 1 to 64 letters, digits, `-`, `_` or `.`";
                return Err(wrong(text, reason));
            }
            if rules
                .insert(name.to_owned(), Rule::parse(name, rule)?)
                .is_some()
            {
                return Err(wrong(text, "there is another one of that name"));
            }
        }
        if !rules.contains_key(DEFAULT) {
            let policy = Policy::TokenBucket {
                capacity: Amount::whole(100),
                refill: Amount::whole(10),
                period: Duration::from_secs(1),
            };
            let on_failure = OnFailure::Closed;
            let name = DEFAULT.to_owned();
            let rule = Rule {
                name: name.clone(),
                policy,
                on_failure,
            };
            rules.insert(name, rule);
        }
        Ok(Self(rules))
    }

    /// The rule of this name.
    pub(super) fn find(&self, name: Option<&str>) -> Option<&Rule> {
        self.0.get(name.unwrap_or(DEFAULT))
    }

    /// Every name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Rule {
    /// The rule of this name in a text.
    ///
    /// # Errors
    /// `Invalid` with the reason.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let algorithm = parts.next().unwrap_or_default();
        let amount = |part: Option<&str>| {
            let number = part.and_then(|part| part.parse::<f64>().ok());
            let number = number.ok_or_else(|| wrong(text, "an amount is a number of tokens"))?;
            Amount::from_f64(number)
        };
        let rate = |part: Option<&str>| -> Result<(Amount, Duration)> {
            let missing = || wrong(text, "a rate is an amount and a time like `10/1s`");
            let (number, time) = part
                .and_then(|part| part.split_once('/'))
                .ok_or_else(missing)?;
            Ok((amount(Some(number))?, duration(time).ok_or_else(missing)?))
        };
        let policy = match algorithm {
            "token_bucket" => {
                let capacity = amount(parts.next())?;
                let (refill, period) = rate(parts.next())?;
                Policy::TokenBucket {
                    capacity,
                    refill,
                    period,
                }
            }
            "sliding_window" => {
                let (limit, window) = rate(parts.next())?;
                Policy::SlidingWindow { limit, window }
            }
            _ => {
                return Err(wrong(
                    text,
                    "it begins with `token_bucket:` or `sliding_window:`",
                ));
            }
        };
        let on_failure = match parts.next() {
            None | Some("fail_closed") => OnFailure::Closed,
            Some("fail_open") => OnFailure::Open,
            Some("local") => OnFailure::Local,
            Some(_) => {
                return Err(wrong(
                    text,
                    "expected `fail_closed`, `fail_open` or `local` at its end",
                ));
            }
        };
        if parts.next().is_some() {
            return Err(wrong(text, "it has too many parts"));
        }
        policy.check(Amount::default())?;
        let name = name.to_owned();
        Ok(Self {
            name,
            policy,
            on_failure,
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(
        number.parse::<u64>().ok()?.checked_mul(scale)?,
    ))
}

fn wrong(text: &str, reason: &str) -> Error {
    Error::invalid(format!(
        "invalid limit `{text}`: {reason}; expected e.g. `login=token_bucket:5:1/1m` or `search=sliding_window:100/1h:fail_open`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_parsed_and_errors_name_the_reason() {
        let texts = [
            "login=token_bucket:5:0.5/1m:local",
            "s=sliding_window:100/1h",
        ];
        let rules = Rules::parse(&texts.map(str::to_owned)).unwrap();
        assert_eq!(rules.names().collect::<Vec<_>>(), ["default", "login", "s"]);
        let login = rules.find(Some("login")).unwrap();
        assert_eq!(login.on_failure, OnFailure::Local);
        assert_eq!(login.policy.capacity(), Amount::whole(5));
        for (text, reason) in [
            ("login", "it has no `=`"),
            ("a b=sliding_window:1/1s", "its name has"),
            ("a=leaky:1/1s", "it begins with"),
            ("a=token_bucket:1", "a rate is"),
            ("a=token_bucket:x:1/1s", "an amount is a number"),
            ("a=sliding_window:1/1y", "a rate is"),
            ("a=sliding_window:1/1s:maybe", "or `local` at its end"),
            ("a=sliding_window:0/1s", "must be over zero"),
        ] {
            let error = Rules::parse(&[text.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
