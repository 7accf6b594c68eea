//! The options of every command.

use std::path::PathBuf;

use clap::{ArgAction, Args, ColorChoice};
use towpath_core::address::shown;

use super::{Exit, Failure, Format};
use crate::auth::leave_record;
use crate::config::{Config, Loaded, Sources, load};
use crate::wiring;

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// Configuration file [default: `./towpath.toml` if present]
    #[arg(
        long,
        global = true,
        hide = true,
        value_name = "FILE",
        value_hint = clap::ValueHint::FilePath
    )]
    pub(super) config: Option<PathBuf>,
    /// Set a configuration key, overriding all other sources: `--set ingest.queue=jobs`
    #[arg(long, global = true, hide = true, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Data folder; the same as `--set data.dir=DIR`
    #[arg(long, global = true, hide = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(super) data: Option<String>,
    /// Admin API URL or address [default: `server.admin`, or the running process that `towpath ps` lists]
    #[arg(
        long,
        visible_alias = "admin",
        global = true,
        hide = true,
        env = "TOWPATH_URL",
        value_name = "ADDRESS"
    )]
    pub(super) url: Option<String>,
    /// Admin API token [default: that of the local process or the data folder]
    #[arg(
        long,
        global = true,
        hide = true,
        env = "TOWPATH_TOKEN",
        hide_env_values = true
    )]
    pub(super) token: Option<String>,
    /// Send the token over plain HTTP to other machines
    #[arg(long, global = true, hide = true)]
    pub(super) insecure: bool,
    /// Output format: table, or JSON with the fields of the admin API
    #[arg(
        long = "output",
        global = true,
        hide = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub(super) format: Format,
    /// The same as `--output json`
    #[arg(long, global = true, hide = true, conflicts_with = "format")]
    pub(super) json: bool,
    /// Coloured output; `auto`: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        hide = true,
        default_value = "auto",
        value_name = "WHEN"
    )]
    pub(super) color: ColorChoice,
    /// Print results only; log warnings and errors only
    #[arg(short, long, global = true, hide = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Verbose: requests of commands, debug logs of servers; `-vv` for trace logs
    #[arg(short, long, global = true, hide = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
}

impl Global {
    /// Leaves the record of a change that this command made without a process, for the audit trail of the next one.
    pub(super) fn leave(config: &Config, action: &str, object: String, parameters: Option<String>) {
        if let Err(error) = leave_record(&config.data_dir, action, object, parameters) {
            super::output::note(format!("the change is not in the audit trail: {error}"));
        }
    }

    /// Every source of configuration that this call has.
    pub(super) fn sources(&self) -> Result<Sources, Failure> {
        let mut flags = Vec::new();
        let mut say = |key: &str, value: &str, flag: &str| {
            flags.push((key.to_owned(), value.to_owned(), flag.to_owned()));
        };
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                let pair = shown(pair);
                let text =
                    format!("`--set {pair}` has no `=`; expected e.g. `--set ingest.queue=jobs`");
                Failure::new(Exit::Usage, text)
            })?;
            say(key, value, "--set");
        }
        if let Some(folder) = &self.data {
            say("data.dir", folder, "--data");
        }
        match self.verbose {
            0 if self.quiet => say("log.level", "warn", "--quiet"),
            0 => {}
            1 => say("log.level", "info,towpath=debug", "--verbose"),
            _ => say("log.level", "debug,towpath=trace", "--verbose"),
        }
        Ok(Sources::of_process(
            self.config.clone(),
            flags,
            wiring::STORES,
        )?)
    }

    /// The configuration, or every problem with it.
    pub(super) fn load(&self) -> Result<Loaded, Failure> {
        Ok(load(&self.sources()?)?)
    }
}

/// What `--color` says, known before the arguments are read: their own errors have colours too.
pub(super) fn color_of(args: impl IntoIterator<Item = String>) -> ColorChoice {
    let mut args = args.into_iter().take_while(|arg| arg != "--");
    let mut choice = ColorChoice::Auto;
    while let Some(arg) = args.next() {
        let value = match arg.strip_prefix("--color") {
            Some("") => args.next(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        choice = value.and_then(|value| value.parse().ok()).unwrap_or(choice);
    }
    choice
}
