//! Suggestions for misspelled names.

use super::{Kind, Stores};

/// The known name that is most like the wrong one, if one is near.
pub(super) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong = wrong.to_lowercase();
    known
        .into_iter()
        .map(|name| {
            let likeness = strsim::jaro_winkler(&wrong, &name.to_lowercase());
            // Two letters changed places: near to the eye, far to a measure that counts beginnings.
            let swapped = strsim::damerau_levenshtein(&wrong, &name.to_lowercase()) <= 1;
            (if swapped { likeness.max(0.9) } else { likeness }, name)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}

/// `; did you mean …?` for the nearest of the known names, if one is near.
pub(crate) fn did_you_mean<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, known).map_or_else(String::new, question)
}

/// `; did you mean …?`
pub(super) fn question(meant: impl std::fmt::Display) -> String {
    format!("; did you mean `{meant}`?")
}

/// A value of this kind that the text may have meant; the caller checks that it is one.
pub(super) fn value(kind: Kind, text: &str, stores: Stores) -> Option<String> {
    let text = text.trim();
    match kind {
        Kind::Choice(words) => nearest(text, words.iter().copied()).map(str::to_owned),
        Kind::Durability if text.contains(char::is_numeric) => {
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            Some(format!("interval:{digits}ms"))
        }
        Kind::Durability => {
            nearest(text, ["fsync", "os", "none", "interval:100ms"]).map(str::to_owned)
        }
        Kind::LogFilter => {
            let parts: Vec<String> = text.split(',').map(|part| directive(part.trim())).collect();
            Some(parts.join(","))
        }
        Kind::Integer(..) => Some(text.replace([',', '_', ' ', '\''], "")),
        Kind::Duration(..) => with_unit(text, |count, unit| match unit {
            "" | "s" => Some(format!("{count}s")),
            "d" => Some(format!("{}h", count * 24)),
            "w" => Some(format!("{}h", count * 168)),
            _ if unit.starts_with("ms") || unit.starts_with("mil") => Some(format!("{count}ms")),
            _ => Some(format!("{count}{}", unit.chars().next()?)),
        }),
        Kind::Memory if !text.contains(char::is_numeric) => {
            nearest(text, ["unbounded"]).map(str::to_owned)
        }
        Kind::Size(..) | Kind::Memory => {
            with_unit(text, |count, unit| match unit.chars().next()? {
                'k' => Some(format!("{count}KiB")),
                'm' => Some(format!("{count}MiB")),
                'g' => Some(format!("{count}GiB")),
                't' => Some(format!("{}GiB", count * 1024)),
                _ => None,
            })
        }
        Kind::Address => {
            let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
            let bare = bare.trim_end_matches('/');
            match bare.rsplit_once(':') {
                None => Some(format!(":{bare}")),
                Some((host, port)) if host.contains(':') => Some(format!("[{host}]:{port}")),
                Some(_) => Some(bare.to_owned()),
            }
        }
        Kind::Backend => match text.split_once(':') {
            None => Some(format!("embedded:{text}")),
            Some((scheme, rest)) => {
                let known = stores
                    .backends
                    .iter()
                    .flat_map(|one| one.schemes.iter().copied());
                nearest(scheme, known).map(|scheme| format!("{scheme}:{rest}"))
            }
        },
        Kind::Database => match text.split_once(':') {
            None => Some(format!("sqlite:{text}")),
            Some((scheme, rest)) => {
                let known = stores
                    .databases
                    .iter()
                    .flat_map(|one| one.schemes.iter().copied());
                nearest(scheme, known).map(|scheme| format!("{scheme}:{rest}"))
            }
        },
        Kind::WebUrl => {
            let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
            Some(format!("https://{}", bare.trim_start_matches('/')))
        }
        Kind::Path
        | Kind::FileMode
        | Kind::Queue
        | Kind::Strings
        | Kind::Limits
        | Kind::MailUrl
        | Kind::MailAddress
        | Kind::ApiKeys
        | Kind::SigningSecrets
        | Kind::Text
        | Kind::SecretText => None,
    }
}

/// One part of a log filter: a misspelt level is put right, and a bare name is a target.
fn directive(part: &str) -> String {
    let level = |word| nearest(word, ["off", "error", "warn", "info", "debug", "trace"]);
    match part.rsplit_once('=') {
        Some((target, word)) => format!("{target}={}", level(word).unwrap_or(word)),
        None => level(part).map_or_else(|| format!("{part}=debug"), str::to_owned),
    }
}

/// A whole number, and the text behind it in lower case.
fn with_unit(text: &str, build: impl Fn(u64, &str) -> Option<String>) -> Option<String> {
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let count = text[..digits]
        .parse()
        .ok()
        .filter(|count| *count < 1 << 40)?;
    build(count, text[digits..].trim().to_lowercase().as_str())
}
