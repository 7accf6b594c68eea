//! From sources to settings: who says what, and whose word counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::check::{RULES, unknown_route};
use super::dotenv;
use super::file::Reader;
use super::key::{KEYS, Key};
use super::kind::Wrong;
use super::place::{FileText, Place};
use super::show::{origins_table, redact};
use super::suggest::{did_you_mean, question};
use super::variables::Variables;
use super::{Config, Origin, Problem, Problems, Stores};

/// Where configuration comes from.
#[derive(Clone)]
pub struct Sources {
    /// Name and text of the file.
    pub file: Option<(String, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Path of a key, its value, and the flag that said so; an empty value takes back what others said.
    pub flags: Vec<(String, String, String)>,
    /// The stores of this build, whose URLs are valid.
    pub stores: Stores,
}

impl Sources {
    /// What this process was given: `--config` or `./towpath.toml`, its environment, `./.env` behind it, its flags.
    ///
    /// # Errors
    /// A problem when the file that was asked for cannot be read.
    pub fn of_process(
        config: Option<PathBuf>,
        flags: Vec<(String, String, String)>,
        stores: Stores,
    ) -> Result<Self, Problems> {
        let mut env = dotenv::read(Path::new(".env"))?;
        let own: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        env.extend(own);
        let variable = env.get("TOWPATH_CONFIG").filter(|path| !path.is_empty());
        let (path, asked) = match (config, variable) {
            (Some(path), _) => (path, Some(Origin::Flag("--config".to_owned()))),
            (None, Some(path)) => {
                let origin = Origin::Variable("TOWPATH_CONFIG".to_owned());
                (PathBuf::from(path), Some(origin))
            }
            (None, None) => (PathBuf::from("towpath.toml"), None),
        };
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(error) if asked.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Problems(vec![Problem {
                    at: asked.unwrap_or(Origin::Default),
                    message: format!("`{}` cannot be read: {error}", path.display()),
                    snippet: None,
                }]));
            }
        };
        Ok(Self {
            file,
            env,
            flags,
            stores,
        })
    }
}

/// A key's value.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// As text; `None` for off.
    pub text: Option<String>,
    /// Who said so.
    pub origin: Origin,
}

/// A valid configuration.
#[derive(Clone)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// Every key's value and origin.
    pub settings: BTreeMap<&'static str, Setting>,
    /// What is odd but works.
    pub warnings: Vec<String>,
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("settings", &origins_table(self))
            .field("warnings", &self.warnings)
            .finish()
    }
}

/// Reads every source, and gives a valid configuration or every problem.
///
/// # Errors
/// Every problem there is, in the order of the places.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut loader = Loader::new(sources);
    loader.read_file(&sources.env);
    let mut variables = Variables::new(&sources.env);
    for key in KEYS {
        for said in variables.about(key) {
            loader.say(key, said.text, said.is_path, Origin::Variable(said.name));
        }
    }
    variables.find_unknown();
    for (name, message) in variables.problems {
        loader.problem(Origin::Variable(name), message);
    }
    let mut warnings = variables.warnings;
    for (path, value, flag) in &sources.flags {
        // What a flag of another name than the key takes back deserves a word.
        let before = loader.settings.get(path.as_str());
        if let Some(Setting { origin, .. }) = before
            && flag == "--ephemeral"
            && *origin != Origin::Default
        {
            warnings.push(format!(
                "`{flag}` overrules `{path}` ({origin}): nothing is kept"
            ));
        }
        let origin = Origin::Flag(flag.clone());
        match Key::find(path) {
            Some(key) => loader.say(key, value.clone(), false, origin),
            None => {
                let hint = did_you_mean(path, KEYS.iter().map(|key| key.path));
                loader.problem(origin, format!("unknown key `{path}`{hint}"));
            }
        }
    }
    let (config, settings) = loader.finish()?;
    warnings.extend(without_effect(&config, &settings));
    Ok(Loaded {
        config,
        settings,
        warnings,
    })
}

struct Loader<'a> {
    file: Option<FileText<'a>>,
    stores: Stores,
    settings: BTreeMap<&'static str, Setting>,
    /// Keys that somebody set to something wrong: rules between keys cannot judge them.
    wrong: BTreeSet<&'static str>,
    problems: Vec<Problem>,
}

impl<'a> Loader<'a> {
    fn new(sources: &'a Sources) -> Self {
        let default = |key: &Key| Setting {
            text: key.default.map(str::to_owned),
            origin: Origin::Default,
        };
        Self {
            file: sources
                .file
                .as_ref()
                .map(|(name, text)| FileText { name, text }),
            stores: sources.stores,
            settings: KEYS.iter().map(|key| (key.path, default(key))).collect(),
            wrong: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    fn read_file(&mut self, env: &BTreeMap<String, String>) {
        let Some(file) = self.file else { return };
        let reader = Reader::read(file, env);
        self.problems.extend(reader.problems);
        let mut seen: BTreeMap<&str, Place> = BTreeMap::new();
        for value in reader.values {
            let (key, place) = (value.key, value.place);
            if let Some(first) = seen.insert(key.path, place.clone()) {
                let later = Origin::File(first.max(place.clone()));
                let message = format!("`{0}` and `{0}_file` are both set; keep one", key.path);
                self.problem(later, message);
            }
            self.say(key, value.text, value.is_path, Origin::File(place));
        }
    }

    /// Takes a value when it is valid, and says what is wrong with it when it is not.
    fn say(&mut self, key: &'static Key, text: String, is_path: bool, origin: Origin) {
        let text = if is_path && !text.is_empty() {
            match std::fs::read_to_string(&text) {
                Ok(content) => content.trim_end().to_owned(),
                Err(error) => {
                    self.wrong.insert(key.path);
                    return self.problem(origin, format!("`{text}` cannot be read: {error}"));
                }
            }
        } else {
            text
        };
        let set = |text| Setting {
            text,
            origin: origin.clone(),
        };
        if text.is_empty() && key.is_optional() {
            self.settings.insert(key.path, set(None));
            return;
        }
        match key.kind.check(&text, self.stores) {
            Ok(()) => {
                self.settings.insert(key.path, set(Some(text)));
            }
            Err(wrong) => {
                self.wrong.insert(key.path);
                // A variable that sets two keys is wrong once.
                let variable = matches!(origin, Origin::Variable(_));
                if variable && self.problems.iter().any(|told| told.at == origin) {
                    return;
                }
                let message = refusal(key, &text, &wrong, &origin);
                self.problem(origin, message);
            }
        }
    }

    fn problem(&mut self, at: Origin, message: String) {
        let snippet = match (&at, self.file) {
            (Origin::File(place), Some(file)) => Some(file.snippet(place)),
            _ => None,
        };
        self.problems.push(Problem {
            at,
            message,
            snippet,
        });
    }

    fn finish(mut self) -> Result<(Config, BTreeMap<&'static str, Setting>), Problems> {
        let config = Config::from_settings(&self.settings);
        let rules = RULES
            .iter()
            .map(|(keys, rule)| (*keys, rule(&config).map(str::to_owned)));
        let route = (&["server.limits"][..], unknown_route(&config));
        let rules: Vec<_> = rules.chain([route]).collect();
        for (keys, message) in rules {
            if keys.iter().any(|key| self.wrong.contains(key)) {
                continue;
            }
            if let Some(message) = message {
                let said = keys.iter().filter_map(|key| self.settings.get(key));
                let last = said.map(|setting| setting.origin.clone()).max();
                self.problem(last.unwrap_or(Origin::Default), message);
            }
        }
        if self.problems.is_empty() {
            return Ok((config, self.settings));
        }
        self.problems.sort();
        Err(Problems(self.problems))
    }
}

/// What to say about a wrong value; the file shows it below, everybody else is told what it was.
fn refusal(key: &Key, text: &str, wrong: &Wrong, origin: &Origin) -> String {
    let hint = wrong
        .suggestion
        .as_deref()
        .map_or_else(String::new, |meant| question(redact(meant)));
    let reason = wrong.reason.as_deref().map(redact);
    let expected = key.kind.expected();
    match (origin, reason) {
        (Origin::File(_), None) => format!("`{}` must be {expected}{hint}", key.path),
        (Origin::File(_), Some(reason)) => format!("`{}`: {reason}{hint}", key.path),
        (_, Some(reason)) => format!("{reason}{hint}; it sets `{}`", key.path),
        (_, None) => {
            let shown = if key.kind.is_secret() {
                "***".to_owned()
            } else {
                redact(text)
            };
            format!("`{shown}` is not {expected}{hint}; it sets `{}`", key.path)
        }
    }
}

/// Keys of a backend that nobody uses.
fn without_effect(config: &Config, settings: &BTreeMap<&'static str, Setting>) -> Vec<String> {
    let urls = [
        &config.ingest_backend,
        &config.orders.broker,
        &config.orders.kv,
        &config.lines.backend,
        &config.limits_backend,
        &config.accounts.broker,
        &config.fleet.backend,
    ];
    let schemes = urls.map(|url| url.expose().split(':').next().unwrap_or_default());
    if schemes.contains(&"embedded") {
        return Vec::new();
    }
    let scheme = schemes[0];
    settings
        .iter()
        .filter(|(path, setting)| {
            path.starts_with("embedded.") && setting.origin != Origin::Default
        })
        .map(|(path, setting)| {
            format!(
                "`{path}` ({}) has no effect: the backend is `{scheme}`",
                setting.origin
            )
        })
        .collect()
}
