//! From sources to settings: their values, and their precedence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::check::{RULES, unknown_route};
use super::dotenv;
use super::file::Reader;
use super::key::{KEYS, Key};
use super::kind::InvalidValue;
use super::queues::DeclaredQueue;
use super::show::origins_table;
use super::source_span::{FileText, SourceSpan};
use super::suggest::{did_you_mean, question};
use super::variables::{Unusable, Variables, keys_of};
use super::{Config, Origin, Problem, Problems, Stores};

/// Where configuration comes from.
#[derive(Clone)]
pub struct Sources {
    /// Name and text of the file.
    pub file: Option<(String, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Names of variables whose values are not UTF-8.
    pub unreadable: BTreeSet<String>,
    /// The files of the working folder.
    pub folder: OfFolder,
    /// Warnings about the sources.
    pub warnings: Vec<String>,
    /// The apps whose roles run, `None` for all of them: a variable that only concerns others cannot stop this process.
    pub apps: Option<BTreeSet<&'static str>>,
    /// Path of a key, its value, and the flag that set it; an empty value removes values of other sources.
    pub flags: Vec<(String, String, String)>,
    /// The stores of this build, whose URLs are valid.
    pub stores: Stores,
}

impl Sources {
    /// The sources of this process: `--config`, `towpath.toml` of its unit or its working directory, its environment, `./.env` behind it, its flags.
    ///
    /// # Errors
    /// A problem when the file that was asked for cannot be read.
    pub fn of_process(
        config: Option<PathBuf>,
        flags: Vec<(String, String, String)>,
        stores: Stores,
    ) -> Result<Self, Problems> {
        let dotenv = dotenv::read(Path::new(".env"))?;
        let (mut env, mut unreadable) = (dotenv.variables, BTreeSet::new());
        let mut folder = OfFolder {
            variables: env.keys().cloned().collect(),
            has_file: false,
        };
        for (name, value) in std::env::vars_os() {
            // A name that is not UTF-8 is not one of Towpath's.
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                // An empty variable counts as not set.
                Ok(value) if value.trim().is_empty() => {
                    env.entry(name).or_insert(value);
                }
                Ok(value) => {
                    folder.variables.remove(&name);
                    env.insert(name, value);
                }
                Err(_) => {
                    env.remove(&name);
                    unreadable.insert(name);
                }
            }
        }
        let variable = env.get("TOWPATH_CONFIG").filter(|path| !path.is_empty());
        let (path, asked) = match (config, variable) {
            (Some(path), _) => (path, Some(Origin::Flag("--config".to_owned()))),
            (None, Some(path)) => {
                let origin = Origin::Variable("TOWPATH_CONFIG".to_owned());
                (PathBuf::from(path), Some(origin))
            }
            (None, None) => (default_file(&env), None),
        };
        folder.has_file = match &asked {
            Some(origin) => folder.says(origin),
            None => path == Path::new(FILE) || folder.has("CONFIGURATION_DIRECTORY"),
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
            unreadable,
            folder,
            warnings: dotenv.warnings,
            apps: None,
            flags,
            stores,
        })
    }
}

/// `towpath.toml` in the working directory, or where there is one in the folder that systemd names for configuration,
/// that one. Source: systemd.exec(5), `ConfigurationDirectory=`.
fn default_file(env: &BTreeMap<String, String>) -> PathBuf {
    let name = FILE;
    let folders = env.get("CONFIGURATION_DIRECTORY").map(String::as_str);
    let folders = folders.unwrap_or_default().split(':');
    let mut files = folders
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name));
    files
        .find(|file| file.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

/// The name of the configuration file.
const FILE: &str = "towpath.toml";

/// What `.env` and `towpath.toml` of the working folder say. The folder may be a checkout of another project's sources.
#[derive(Debug, Clone, Default)]
pub struct OfFolder {
    /// Variables that only `.env` sets.
    variables: BTreeSet<String>,
    /// The configuration file was found in the working folder, or named by `.env`.
    has_file: bool,
}

impl OfFolder {
    /// Whether a variable is set by `.env` alone.
    pub fn has(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Whether this source is the working folder.
    pub fn says(&self, origin: &Origin) -> bool {
        match origin {
            Origin::Default | Origin::Flag(_) => false,
            Origin::Variable(name) => self.has(name),
            Origin::File(_) => self.has_file,
        }
    }
}

/// A key's value.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// As text; `None` for off.
    pub text: Option<String>,
    /// The source names a file that holds the text.
    pub is_path: bool,
    /// The source.
    pub origin: Origin,
}

/// A valid configuration.
#[derive(Clone)]
pub struct Loaded {
    /// The model.
    pub config: Config,
    /// Every key's value and origin.
    pub settings: BTreeMap<&'static str, Setting>,
    /// Warnings.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Opens the public listener to this machine only, unless an address is configured.
    pub fn listen_on_loopback(&mut self) {
        let setting = self.settings.get("server.listen");
        if setting.is_none_or(|setting| setting.origin == Origin::Default) {
            self.config.listen = on_loopback(&self.config.listen);
        }
    }
}

/// The loopback address with the port of `:PORT`; another address as it is.
pub(crate) fn on_loopback(address: &str) -> String {
    match address.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_owned(),
    }
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
            let value = Value {
                text: said.text,
                is_path: false,
                written: said.written,
            };
            loader.set_value(key, value, Origin::Variable(said.name));
        }
    }
    variables.find_unknown();
    for unusable in variables.problems {
        loader.unusable(unusable);
    }
    loader.refuse_unreadable(&sources.unreadable);
    loader.warnings.extend(sources.warnings.iter().cloned());
    loader.warnings.extend(variables.warnings);
    for (path, value, flag) in &sources.flags {
        // A flag of another name than the key is named when it removes a value.
        let before = loader.settings.get(path.as_str());
        if let Some(Setting { origin, .. }) = before
            && flag == "--ephemeral"
            && *origin != Origin::Default
        {
            let warning = format!("`{flag}` overrules `{path}` ({origin}): nothing is kept");
            loader.warnings.push(warning);
        }
        let origin = Origin::Flag(flag.clone());
        match Key::find(path) {
            Some(key) => {
                let value = Value {
                    text: value.clone(),
                    is_path: false,
                    written: None,
                };
                loader.set_value(key, value, origin);
            }
            None => {
                let hint = did_you_mean(path, KEYS.iter().map(|key| key.path));
                loader.problem(origin, format!("unknown key `{path}`{hint}"));
            }
        }
    }
    let (config, settings, mut warnings) = loader.finish()?;
    warnings.extend(without_effect(&config, &settings));
    Ok(Loaded {
        config,
        settings,
        warnings,
    })
}

/// The value of a key in a source.
struct Value {
    /// The text, or the path of the file that holds it.
    text: String,
    is_path: bool,
    /// The text as it stands in its variable or, where variables were put in, after that; secrets hidden.
    written: Option<String>,
}

struct Loader<'a> {
    file: Option<FileText<'a>>,
    stores: Stores,
    apps: Option<&'a BTreeSet<&'static str>>,
    warnings: Vec<String>,
    settings: BTreeMap<&'static str, Setting>,
    /// Keys with an invalid value: rules between keys cannot judge them.
    wrong: BTreeSet<&'static str>,
    queues: Vec<DeclaredQueue>,
    problems: Vec<Problem>,
}

impl<'a> Loader<'a> {
    fn new(sources: &'a Sources) -> Self {
        let default = |key: &Key| Setting {
            is_path: false,
            text: key.default.map(str::to_owned),
            origin: Origin::Default,
        };
        Self {
            file: sources
                .file
                .as_ref()
                .map(|(name, text)| FileText { name, text }),
            stores: sources.stores,
            apps: sources.apps.as_ref(),
            warnings: Vec::new(),
            settings: KEYS.iter().map(|key| (key.path, default(key))).collect(),
            wrong: BTreeSet::new(),
            queues: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn read_file(&mut self, env: &BTreeMap<String, String>) {
        let Some(file) = self.file else { return };
        let reader = Reader::read(file, env);
        self.problems.extend(reader.problems);
        self.queues = reader.queues;
        let mut seen: BTreeMap<&str, SourceSpan> = BTreeMap::new();
        for value in reader.values {
            let (key, place) = (value.key, value.place);
            if let Some(first) = seen.insert(key.path, place.clone()) {
                let later = Origin::File(first.max(place.clone()));
                let message = format!("`{0}` and `{0}_file` are both set; keep one", key.path);
                self.problem(later, message);
            }
            let written = value.is_interpolated.then(|| key.shown(&value.text));
            let (text, is_path) = (value.text, value.is_path);
            let value = Value {
                text,
                is_path,
                written,
            };
            self.set_value(key, value, Origin::File(place));
        }
    }

    /// Takes a value when it is valid, and reports the problem when it is not.
    fn set_value(&mut self, key: &'static Key, value: Value, origin: Origin) {
        let path = value.is_path && !value.text.is_empty();
        let text = if path {
            match std::fs::read_to_string(&value.text) {
                Ok(content) => content.trim_end().to_owned(),
                Err(error) => {
                    self.wrong.insert(key.path);
                    let message = format!("`{}` cannot be read: {error}", value.text);
                    return self.problem(origin, message);
                }
            }
        } else {
            value.text
        };
        // `API_KEY_FILE` was read before.
        let is_file = |name: &String| name.ends_with("_FILE");
        let is_path = path || matches!(&origin, Origin::Variable(name) if is_file(name));
        let set = |text| Setting {
            text,
            is_path,
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
                let message = refusal(key, &text, value.written.as_deref(), &wrong, &origin);
                match origin {
                    Origin::Variable(variable) => self.unusable(Unusable {
                        variable,
                        key: Some(key.path),
                        message,
                    }),
                    _ => {
                        self.wrong.insert(key.path);
                        self.problem(origin, message);
                    }
                }
            }
        }
    }

    /// A variable that cannot be used: a problem, unless no role of its app runs.
    fn unusable(&mut self, unusable: Unusable) {
        let Unusable {
            variable,
            key,
            message,
        } = unusable;
        let idle = key.and_then(Key::find).and_then(|key| self.idle_app(key));
        if let Some(app) = idle {
            let warning =
                format!("variable {variable}: {message}; ignored, because no role of `{app}` runs");
            // A variable may concern several keys.
            if !self
                .warnings
                .iter()
                .any(|known| known.starts_with(&format!("variable {variable}:")))
            {
                self.warnings.push(warning);
            }
            return;
        }
        self.wrong.extend(key);
        let origin = Origin::Variable(variable);
        // A variable that sets two keys is wrong once.
        if !self.problems.iter().any(|known| known.at == origin) {
            self.problem(origin, message);
        }
    }

    /// The app that a key belongs to, when none of its roles runs.
    fn idle_app(&self, key: &Key) -> Option<&'static str> {
        let app = key.app()?;
        self.apps
            .is_some_and(|apps| !apps.contains(app))
            .then_some(app)
    }

    /// A value that is not UTF-8 cannot be used.
    fn refuse_unreadable(&mut self, names: &BTreeSet<String>) {
        let in_file = |name: &str| {
            let file = self.file.map_or("", |file| file.text);
            file.contains(&format!("${{{name}}}")) || file.contains(&format!("${{{name}:-"))
        };
        let ours: Vec<_> = names
            .iter()
            .filter_map(|name| match keys_of(name) {
                Some(keys) => Some((name, keys)),
                None => in_file(name).then(|| (name, Vec::new())),
            })
            .collect();
        for (name, keys) in ours {
            let keys: Vec<Option<&'static str>> = match keys[..] {
                [] => vec![None],
                _ => keys.iter().map(|key| Some(key.path)).collect(),
            };
            for key in keys {
                self.unusable(Unusable {
                    variable: name.clone(),
                    key,
                    message: "the value is not UTF-8".to_owned(),
                });
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

    fn finish(mut self) -> Result<Finished, Problems> {
        let mut config = Config::from_settings(&self.settings);
        for queue in std::mem::take(&mut self.queues) {
            if queue.name.as_str() == config.queue {
                let message = format!(
                    "queue `{}` is the ingest queue; set `ingest.worker.retry`, `ingest.idempotency_window` and `ingest.max_depth` instead",
                    queue.name
                );
                self.problem(Origin::File(queue.place), message);
                continue;
            }
            config.queues.insert(queue.name, queue.settings);
        }
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
                let idle = keys
                    .iter()
                    .all(|key| Key::find(key).is_some_and(|key| self.idle_app(key).is_some()));
                match last {
                    Some(Origin::Variable(variable)) if idle => self.unusable(Unusable {
                        variable,
                        key: keys.first().copied(),
                        message,
                    }),
                    last => self.problem(last.unwrap_or(Origin::Default), message),
                }
            }
        }
        if self.problems.is_empty() {
            return Ok((config, self.settings, self.warnings));
        }
        self.problems.sort();
        Err(Problems(self.problems))
    }
}

/// The configuration, the settings that it was made from, and warnings.
type Finished = (Config, BTreeMap<&'static str, Setting>, Vec<String>);

/// The message about an invalid value; for a file the snippet shows the value, otherwise the message does.
fn refusal(
    key: &Key,
    text: &str,
    written: Option<&str>,
    wrong: &InvalidValue,
    origin: &Origin,
) -> String {
    // A hint in the form of the key would mislead about a variable that has another one.
    let meant = wrong.suggestion.as_deref().filter(|_| written.is_none());
    let hint = meant.map_or_else(String::new, |meant| question(key.shown(meant)));
    // An error of a store shows no piece of a URL but as `shown` does.
    let reason = wrong.reason.as_deref();
    let expected = key.kind.expected();
    let said = match written {
        Some(written) => written.to_owned(),
        None => key.shown(text),
    };
    let path = key.path;
    match (origin, reason, written) {
        (Origin::File(_), None, None) => format!("`{path}` must be {expected}{hint}"),
        (Origin::File(_), None, Some(_)) => {
            format!("`{path}` must be {expected}; with its variables it is `{said}`")
        }
        (Origin::File(_), Some(reason), None) => format!("`{path}`: {reason}{hint}"),
        (Origin::File(_), Some(reason), Some(_)) => {
            format!("`{path}`: {reason}; with its variables it is `{said}`")
        }
        (_, Some(reason), None) => format!("{reason}{hint}; it sets `{path}`"),
        (_, Some(reason), Some(_)) => format!("`{said}`: {reason}; it sets `{path}`"),
        (_, None, _) => format!("`{said}` is not {expected}{hint}; it sets `{path}`"),
    }
}

/// Keys of an unused backend.
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
