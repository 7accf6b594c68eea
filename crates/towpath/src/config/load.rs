//! From sources to settings: who says what, and whose word counts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::file::Reader;
use super::key::{KEYS, Key, did_you_mean};
use super::show::redact;
use super::{Config, Kind, Problem, Problems};
use crate::sink::VARIABLE_PREFIX;

/// Variables of ours that are no keys.
const OTHER_VARIABLES: [&str; 4] = [
    "TOWPATH_CONFIG",
    "TOWPATH_URL",
    "TOWPATH_TOKEN",
    "TOWPATH_SEEDS",
];

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Name and text of the file.
    pub file: Option<(String, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Path of a key, its value, and the flag that said so.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// What this process was given: `--config` or `./towpath.toml`, its environment, its flags.
    ///
    /// # Errors
    /// A problem when the file that was asked for cannot be read.
    pub fn of_process(
        config: Option<PathBuf>,
        flags: Vec<(String, String, String)>,
    ) -> Result<Self, Problems> {
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let named = config.or_else(|| {
            env.get("TOWPATH_CONFIG")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        });
        let path = named
            .clone()
            .unwrap_or_else(|| PathBuf::from("towpath.toml"));
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                let place = path.display().to_string();
                return Err(Problems(vec![Problem {
                    place,
                    message: format!("cannot be read: {error}"),
                    snippet: None,
                }]));
            }
        };
        Ok(Self { file, env, flags })
    }
}

/// Who said what a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The file, at this place.
    File(String),
    /// A variable.
    Variable(String),
    /// A flag.
    Flag(String),
}

/// A key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As text; `None` for off.
    pub text: Option<String>,
    /// Who said so.
    pub origin: Origin,
}

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// Every key's value and origin.
    pub settings: BTreeMap<&'static str, Setting>,
    /// What is odd but works.
    pub warnings: Vec<String>,
}

/// Reads every source, and gives a valid configuration or every problem.
///
/// # Errors
/// Every problem there is.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut settings: BTreeMap<&'static str, Setting> = KEYS
        .iter()
        .map(|key| {
            (
                key.path,
                Setting {
                    text: key.default.map(str::to_owned),
                    origin: Origin::Default,
                },
            )
        })
        .collect();
    if let Some((name, text)) = &sources.file {
        let reader = Reader::read(name, text, &sources.env);
        problems.extend(reader.problems.into_iter().map(|(_, problem)| problem));
        for (path, value) in reader.values {
            settings.insert(
                path,
                Setting {
                    text: Some(value.text),
                    origin: Origin::File(value.place),
                },
            );
        }
    }
    for key in KEYS {
        if let Some((variable, text)) = reference_value(key, &sources.env, &mut warnings) {
            set(
                &mut settings,
                key,
                text,
                Origin::Variable(variable),
                &mut problems,
            );
        }
        if let Some((variable, text)) = own_value(key, &sources.env, &mut problems) {
            set(
                &mut settings,
                key,
                text,
                Origin::Variable(variable),
                &mut problems,
            );
        }
    }
    unknown_variables(&sources.env, &mut problems);
    for (path, value, flag) in &sources.flags {
        match Key::find(path) {
            Some(key) => set(
                &mut settings,
                key,
                value.clone(),
                Origin::Flag(flag.clone()),
                &mut problems,
            ),
            None => {
                let hint = did_you_mean(path, KEYS.iter().map(|key| key.path));
                problems.push(problem(flag, format!("unknown key `{path}`{hint}")));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let config = Config::from_settings(&settings);
    let crossed = config.contradictions(&settings);
    if crossed.is_empty() {
        Ok(Loaded {
            config,
            settings,
            warnings,
        })
    } else {
        Err(Problems(crossed))
    }
}

fn set(
    settings: &mut BTreeMap<&'static str, Setting>,
    key: &'static Key,
    text: String,
    origin: Origin,
    problems: &mut Vec<Problem>,
) {
    if key.kind.accepts(&text) {
        settings.insert(
            key.path,
            Setting {
                text: Some(text),
                origin,
            },
        );
        return;
    }
    let place = match &origin {
        Origin::Variable(name) => format!("variable {name}"),
        Origin::Flag(name) => format!("flag {name}"),
        Origin::Default | Origin::File(_) => key.path.to_owned(),
    };
    let shown = if key.kind == Kind::Secret {
        "***".to_owned()
    } else {
        redact(&text)
    };
    problems.push(problem(
        &place,
        format!(
            "`{shown}` is not {}; it sets `{}`",
            key.kind.expected(),
            key.path
        ),
    ));
}

/// `TOWPATH_SECTION__KEY`, or the content of the file that `TOWPATH_SECTION__KEY_FILE` names for a secret.
fn own_value(
    key: &Key,
    env: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Option<(String, String)> {
    let name = key.variable();
    if let Some(text) = env.get(&name).filter(|text| !text.is_empty()) {
        return Some((name, text.clone()));
    }
    let name = format!("{name}_FILE");
    let path = env
        .get(&name)
        .filter(|path| key.kind == Kind::Secret && !path.is_empty())?;
    match std::fs::read_to_string(path) {
        Ok(text) => Some((name, text.trim_end().to_owned())),
        Err(error) => {
            problems.push(problem(
                &format!("variable {name}"),
                format!("`{path}` cannot be read: {error}"),
            ));
            None
        }
    }
}

/// The strongest reference variable that is set, in the words of the key.
fn reference_value(
    key: &Key,
    env: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Option<(String, String)> {
    let set = |name: &&&str| {
        env.get(**name)
            .is_some_and(|value| !value.trim().is_empty())
    };
    let mut names = key.variables.iter().filter(set);
    let name = *names.next()?;
    for other in names {
        warnings.push(format!(
            "`{name}` and `{other}` both set `{}`; `{name}` wins",
            key.path
        ));
    }
    let value = env.get(name)?.trim();
    let text = match name {
        "PORT" => format!(":{value}"),
        // What cannot be read is no delay, as existing deployments expect.
        "PROCESSING_DELAY_MS" => match value.parse::<u64>() {
            Ok(millis) => format!("{millis}ms"),
            Err(_) => {
                warnings.push(format!(
                    "`PROCESSING_DELAY_MS={value}` is no number of milliseconds and counts as 0"
                ));
                "0s".to_owned()
            }
        },
        _ => value.to_owned(),
    };
    Some((name.to_owned(), text))
}

fn unknown_variables(env: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
    for name in env
        .keys()
        .filter(|name| name.starts_with("TOWPATH_") && !name.starts_with("TOWPATH_TEST_"))
        // A command of the command sink may well call us.
        .filter(|name| !name.starts_with(VARIABLE_PREFIX))
    {
        let key = name.strip_suffix("_FILE").unwrap_or(name);
        if !OTHER_VARIABLES.contains(&name.as_str())
            && !known.iter().any(|known| known == key || known == name)
        {
            let hint = did_you_mean(name, known.iter().map(String::as_str));
            problems.push(problem(
                &format!("variable {name}"),
                format!("no key is called so{hint}"),
            ));
        }
    }
}

fn problem(place: &str, message: String) -> Problem {
    Problem {
        place: place.to_owned(),
        message,
        snippet: None,
    }
}
