//! `towpath up` and `towpath run`: a process, from its start to its account.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use towpath_core::address::shown;
use towpath_core::backend::Health;
use towpath_core::{ErrorKind, Result};

use super::banner::Banner;
use super::client::read_token;
use super::processes::{self, Process, Registration};
use super::signals::Signals;
use super::token_file::TokenFile;
use super::{Exit, Failure, Format, Global, notify, output, version};
use crate::config::{Config, Loaded, REFERENCE, Sources, load};
use crate::stores::UNLOGGED;
use crate::telemetry::{Traces, flush_logs, hold_logs, init_logs};
use crate::wiring::{self, Role, Started};
use towpath::net::certificate;
use towpath::supervisor::{Report, TaskExit, TaskReport};

/// Timeout of the export of the last traces.
const TRACES: Duration = Duration::from_secs(1);

/// Options of `up`.
#[derive(Debug, Args)]
#[command(
    after_help = "Data is stored in `./towpath-data`, or the folder of `--data`.\n\nExamples:\n  towpath up\n  towpath up --demo --ephemeral\n  towpath up --data /srv/towpath --set server.listen=:9000"
)]
pub(super) struct UpArgs {
    /// Send a little traffic to every app, for a first look; some of it fails
    #[arg(long)]
    demo: bool,
    /// Use temporary storage and delete it on exit; overrides all storage settings
    #[arg(long)]
    ephemeral: bool,
}

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath run ingest.api,ingest.worker\n  towpath run api")]
pub(super) struct RunArgs {
    /// Roles, separated by commas (see `towpath roles`)
    roles: String,
    /// Default to RabbitMQ, Redis, PostgreSQL and Kafka on this machine, as the reference systems do
    #[arg(long)]
    reference: bool,
}

pub(super) async fn up(global: &Global, args: UpArgs) -> Result<Exit, Failure> {
    let roles: Vec<Role> = Role::all().collect();
    let sources = global.sources()?;
    if !args.ephemeral {
        let loaded = load_for(sources, args.demo)?;
        return serve(global, &loaded, &roles, args.demo, false).await;
    }
    if global.data.is_some() {
        let text = "`--ephemeral` keeps nothing, so there is no `--data`; leave one of them out";
        return Err(Failure::new(Exit::Usage, text));
    }
    // Removed when the process ends in order; a killed one leaves it to the system's cleaning of its temporary folder.
    let folder = tempfile::Builder::new().prefix("towpath-").tempdir()?;
    let loaded = load_for(keeping_nothing(sources, folder.path()), args.demo)?;
    let exit = serve(global, &loaded, &roles, args.demo, true).await;
    drop(folder);
    exit
}

pub(super) async fn run(global: &Global, args: RunArgs) -> Result<Exit, Failure> {
    let roles = Role::parse_list(&args.roles)?;
    let mut sources = global.sources()?;
    sources.apps = Some(roles.iter().map(|role| role.app()).collect());
    if args.reference {
        sources.env.insert(REFERENCE.to_owned(), "1".to_owned());
    }
    serve(global, &load(&sources)?, &roles, false, false).await
}

/// The configuration; for the demo with a file to follow and a URL to ask, where none is set.
fn load_for(mut sources: Sources, demo: bool) -> Result<Loaded, Failure> {
    let mut loaded = load(&sources)?;
    if !demo {
        loaded.listen_on_loopback();
        return Ok(loaded);
    }
    let config = &loaded.config;
    if config.tls_certificate.is_some() {
        let text = "`--demo` speaks plain HTTP to the listeners; leave it out, or `server.tls.certificate`";
        return Err(Failure::new(Exit::Usage, text));
    }
    let mut set = |key: &str, value: String| {
        let flag = "--demo".to_owned();
        sources.flags.push((key.to_owned(), value, flag));
    };
    if config.lines.input.is_none() && config.lines.inputs.is_empty() {
        let file = config.data_dir.join("demo-input.txt");
        set("lines.input", file.display().to_string());
    }
    if config.fleet.allow.is_empty() {
        set("fleet.worker.allow", "127.0.0.1".to_owned());
    }
    loaded = load(&sources)?;
    loaded.listen_on_loopback();
    Ok(loaded)
}

/// Takes back everything that leads to a place where something would be kept.
fn keeping_nothing(mut sources: Sources, folder: &Path) -> Sources {
    for (key, value) in [
        ("data.dir", folder.display().to_string()),
        ("backends.default", String::new()),
        ("backends.ingest", String::new()),
        ("backends.orders", String::new()),
        ("backends.orders_kv", String::new()),
        ("backends.lines", String::new()),
        ("backends.limits", String::new()),
        ("backends.relay", String::new()),
        ("accounts.database", String::new()),
        ("backends.fleet", String::new()),
        ("fleet.controller.database", String::new()),
        ("embedded.durability", "none".to_owned()),
        ("ingest.worker.output", String::new()),
    ] {
        let flag = "--ephemeral".to_owned();
        sources.flags.push((key.to_owned(), value, flag));
    }
    sources
}

async fn serve(
    global: &Global,
    loaded: &Loaded,
    roles: &[Role],
    demo: bool,
    ephemeral: bool,
) -> Result<Exit, Failure> {
    // The variable of the command line may be set in any shell; the option can only be meant for the listener.
    let of_commands = std::env::var("TOWPATH_URL").ok();
    if let Some(address) = global
        .url
        .as_ref()
        .filter(|url| of_commands.as_ref() != Some(url))
    {
        let address = shown(address);
        let text = format!(
            "`--admin` and `--url` choose the process that a command asks; the address to listen on is set with `--set server.admin={address}`"
        );
        return Err(Failure::new(Exit::Usage, text));
    }
    let began = Instant::now();
    let config = &loaded.config;
    let colour = output::is_coloured(&std::io::stderr());
    init_logs(
        config.log_format.parse()?,
        &config.log_level,
        colour,
        UNLOGGED,
    )?;
    if has_banner(global) {
        hold_logs();
    }
    certificate::install_provider();
    // Before anything slow: a signal during the start counts as well.
    let signals = Signals::install(config.drain)?;
    let backends = chosen(loaded, roles);
    match has_banner(global) {
        // The banner says so.
        true => tracing::debug!(backends, "backends chosen"),
        false => tracing::info!(backends, "backends chosen"),
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let traces = Traces::start(&config.traces).map_err(|error| {
        // Nothing was opened yet: only the settings can be wrong.
        Failure::new(Exit::Config, error.chain())
    })?;
    let started = wiring::start(loaded, roles, demo).await.map_err(|error| {
        // The arguments were valid; the configuration that they lead to is not.
        let invalid = [ErrorKind::Invalid, ErrorKind::Unsupported].contains(&error.kind());
        if invalid {
            Failure::new(Exit::Config, error.chain())
        } else {
            error.into()
        }
    })?;
    let _token = leave_token(&started, config);
    let _registration = register(&started, config, roles);
    let elapsed = began.elapsed();
    announce(
        global,
        &started,
        loaded,
        (roles, elapsed),
        (ephemeral, demo),
    )
    .await;
    notify::ready();
    let (first, second) = signals.first_and_second();
    let report = started.run(first, second).await;
    if let Some(traces) = traces {
        tokio::time::timeout(TRACES, traces.finish()).await.ok();
    }
    print_account(global, &report);
    Ok(exit(&report))
}

/// The keys that choose the storage of an app's roles.
const STORES_OF: [(&str, &[&str]); 8] = [
    ("ingest.", &["backends.ingest"]),
    ("orders.", &["backends.orders", "backends.orders_kv"]),
    ("lines.", &["backends.lines"]),
    ("accounts.api", &["accounts.database", "backends.limits"]),
    ("accounts.relay", &["accounts.database", "backends.relay"]),
    ("fleet.controller", &["fleet.controller.database"]),
    ("fleet.worker", &["backends.fleet"]),
    ("fleet.agent", &[]),
];

/// Where an app is without a setting.
const EMBEDDED: &str = "the embedded store (nothing else is set)";
const SQLITE: &str = "a SQLite file in the data folder (nothing else is set)";

/// Timeout of an output without a reader.
const UNREAD: Duration = Duration::from_millis(500);

/// The storage of a key, and its origin.
pub(super) fn place_of(loaded: &Loaded, key: &str) -> String {
    let setting_of = |key: &str| {
        let setting = loaded.settings.get(key)?;
        let url = setting.text.as_deref().map(shown)?;
        Some(format!("{url} ({})", setting.origin))
    };
    let (others, default): (&[&str], _) = match key {
        "backends.orders" => (&["backends.default", "backends.orders_kv"], EMBEDDED),
        "backends.orders_kv" => (&["backends.orders", "backends.default"], EMBEDDED),
        _ if key.starts_with("backends.") => (&["backends.default"], EMBEDDED),
        _ => (&[], SQLITE),
    };
    let mut places = std::iter::once(&key)
        .chain(others)
        .filter_map(|key| setting_of(key));
    places.next().unwrap_or_else(|| default.to_owned())
}

/// The storage of these roles, and the origin of each choice.
fn chosen(loaded: &Loaded, roles: &[Role]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for role in roles {
        let of_role = |(prefix, _): &&(&str, _)| role.as_str().starts_with(prefix);
        let found = STORES_OF.iter().find(of_role);
        keys.extend(found.iter().flat_map(|(_, keys)| keys.iter()));
    }
    keys.dedup();
    let mut all: Vec<String> = Vec::new();
    for key in keys {
        let place = place_of(loaded, key);
        let text = format!("{key} = {place}");
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all.join(", ")
}

/// The exit code of the report.
fn exit(report: &Report) -> Exit {
    match &report.closing {
        _ if report.failure.is_some() => Exit::Unreachable,
        TaskExit::Failed(_) => Exit::Unreachable,
        TaskExit::Cut => Exit::Cut,
        TaskExit::Finished if report.is_clean() => Exit::Ok,
        TaskExit::Finished => Exit::Failed,
    }
}

/// Leaves the admin token to this user's command line, whatever folder it runs in.
fn leave_token(started: &Started, config: &Config) -> Option<TokenFile> {
    let token = read_token(&config.data_dir)?;
    TokenFile::leave(&started.admin.to_string(), token)
        .inspect_err(|error| {
            tracing::info!(%error, "token file not written; pass `--data` to commands");
        })
        .ok()
}

/// Leaves the address of the process to this user's command line.
fn register(started: &Started, config: &Config, roles: &[Role]) -> Option<Registration> {
    let folder = &config.data_dir;
    let process = Process {
        admin: started.admin.to_string(),
        pid: std::process::id(),
        roles: roles.iter().map(ToString::to_string).collect(),
        data: processes::whole(folder),
    };
    Registration::leave(&process)
        .inspect_err(|error| {
            tracing::info!(%error, "process not listed; the command line needs `--admin` for another port than the default");
        })
        .ok()
}

/// The banner on a terminal, one line of facts elsewhere.
async fn announce(
    global: &Global,
    started: &Started,
    loaded: &Loaded,
    (roles, elapsed): (&[Role], Duration),
    (ephemeral, demo): (bool, bool),
) {
    let config = &loaded.config;
    let http = started.http.map(|address| local(&address.to_string()));
    let admin = local(&started.admin.to_string());
    let health = match started.backends.first() {
        Some(backend) => backend.lifecycle.health().await.unwrap_or_default(),
        None => Health::default(),
    };
    let names: Vec<&str> = started
        .backends
        .iter()
        .map(|backend| backend.descriptor.name)
        .collect();
    let backend = names.join(", ");
    let durability = health
        .facts
        .iter()
        .find(|(name, _)| name == "durability")
        .map_or("as the backend", |(_, value)| value);
    let kept = if ephemeral {
        "deleted at exit"
    } else {
        "kept (`--ephemeral` discards)"
    };
    for warning in &health.warnings {
        tracing::warn!("{warning}");
    }
    if global.quiet {
        return;
    }
    if !has_banner(global) {
        tracing::info!(
            version = version::LINE,
            http = http.as_deref().unwrap_or("none"),
            admin,
            data = %config.data_dir.display(),
            listeners = own_listeners(started).join(" "),
            backend,
            durability,
            ?elapsed,
            "ready"
        );
        return;
    }
    let banner = Banner {
        started,
        loaded,
        roles,
        elapsed,
        durability,
        kept,
        with_demo: demo,
    };
    print(banner.lines(output::width_of_terminal()));
    flush_logs();
}

/// Whether the process prints to a terminal.
fn has_banner(global: &Global) -> bool {
    std::io::stdout().is_terminal() && global.format == Format::Table && !global.quiet
}

/// Prints lines behind those of the log.
fn offer(lines: Vec<String>) {
    flush_logs();
    print(lines);
}

/// Prints lines. A closed output, or one that is not read, neither stops nor ends the process.
fn print(lines: Vec<String>) {
    let (written, done) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        output::text(&(lines.join("\n") + "\n")).ok();
        written.send(()).ok();
    });
    done.recv_timeout(UNREAD).ok();
}

/// Where single roles listen, as `role=address`.
fn own_listeners(started: &Started) -> Vec<String> {
    let own = started.listeners.iter();
    own.map(|(role, address)| format!("{role}={}", local(&address.to_string())))
        .collect()
}

/// An address as one types it.
fn local(address: &str) -> String {
    address.replace("0.0.0.0", "localhost")
}

/// Prints a summary with one line for each task.
fn print_account(global: &Global, report: &Report) {
    if global.format == Format::Json {
        return offer(vec![format!("{:#}", account(report))]);
    }
    if global.quiet && report.is_clean() {
        return;
    }
    let mut lines = vec![format!(
        "stopped by {} after {:.1?}",
        report.reason, report.drained_in
    )];
    if let Some(failure) = &report.failure {
        lines.push(format!("  ended at once: {failure}"));
    }
    if report.closing != TaskExit::Finished {
        lines.push(format!("  backends: {}", in_words(&report.closing)));
    }
    for task in &report.tasks {
        let counts: Vec<String> = task
            .counts
            .iter()
            .map(|(what, count)| format!("{what}={count}"))
            .collect();
        let ending = in_words(&task.ending);
        let line = format!("  {}: {ending} {}", task.name, counts.join(" "));
        lines.push(line.trim_end().to_owned());
    }
    offer(lines);
}

fn account(report: &Report) -> serde_json::Value {
    let task = |task: &TaskReport| {
        let counts: serde_json::Map<_, _> = task
            .counts
            .iter()
            .map(|(what, count)| (what.to_string(), (*count).into()))
            .collect();
        serde_json::json!({"task": task.name, "ending": in_words(&task.ending), "counts": counts})
    };
    serde_json::json!({
        "stopped_by": report.reason,
        "drained_in_seconds": report.drained_in.as_secs_f64(),
        "failure": report.failure,
        "backends": in_words(&report.closing),
        "tasks": report.tasks.iter().map(task).collect::<Vec<_>>(),
    })
}

fn in_words(ending: &TaskExit) -> String {
    match ending {
        TaskExit::Finished => "finished".to_owned(),
        TaskExit::Cut => "cut short".to_owned(),
        TaskExit::Failed(error) => format!("failed: {error}"),
    }
}
