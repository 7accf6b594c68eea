//! `towpath up` and `towpath run`: a process, from its start to its account.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use towpath_core::address::shown;
use towpath_core::backend::Health;
use towpath_core::{ErrorKind, Result};

use super::client::read_token;
use super::signals::Signals;
use super::token_file::TokenFile;
use super::{Exit, Failure, Format, Global, notify, output, version};
use crate::config::{Config, Loaded, REFERENCE, Sources, load};
use crate::http::tls;
use crate::supervisor::{Ending, Report, TaskReport};
use crate::telemetry::{Traces, init_logs};
use crate::wiring::{self, Role, Started};

/// How long the last traces may take.
const TRACES: Duration = Duration::from_secs(1);

/// Options of `up`.
#[derive(Debug, Args)]
#[command(
    after_help = "The data is kept in `./towpath-data`, or where `--data` says.\n\nExamples:\n  towpath up\n  towpath up --demo --ephemeral\n  towpath up --data /srv/towpath --set server.listen=:9000"
)]
pub(super) struct UpArgs {
    /// Send a little traffic, for a first look
    #[arg(long)]
    demo: bool,
    /// Keep nothing: a temporary embedded store and output file, whatever else is configured
    #[arg(long)]
    ephemeral: bool,
}

/// Options of `run`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath run ingest.api,ingest.worker\n  towpath run api")]
pub(super) struct RunArgs {
    /// Roles, separated by commas; `towpath roles` lists them
    roles: String,
    /// Without other settings, use RabbitMQ, Redis, PostgreSQL and Kafka on this machine, as the reference systems do
    #[arg(long)]
    reference: bool,
}

pub(super) async fn up(global: &Global, args: UpArgs) -> Result<Exit, Failure> {
    let roles: Vec<Role> = Role::all().collect();
    if !args.ephemeral {
        return serve(global, &global.load()?, &roles, args.demo, false).await;
    }
    if global.data.is_some() {
        let text = "`--ephemeral` keeps nothing, so there is no `--data`; leave one of them out";
        return Err(Failure::new(Exit::Usage, text));
    }
    // Removed when the process ends in order; a killed one leaves it to the system's cleaning of its temporary folder.
    let folder = tempfile::Builder::new().prefix("towpath-").tempdir()?;
    let loaded = load(&keeping_nothing(global.sources()?, folder.path()))?;
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
    let began = Instant::now();
    let config = &loaded.config;
    let colour = output::is_coloured(&std::io::stderr());
    init_logs(config.log_format.parse()?, &config.log_level, colour)?;
    tls::install_provider();
    // Before anything slow: a signal during the start counts as well.
    let signals = Signals::install(config.drain)?;
    tracing::info!(backends = chosen(loaded, roles), "backends chosen");
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let traces = Traces::start(&config.traces).map_err(|error| {
        // Nothing was opened yet: only the settings can be wrong.
        Failure::new(Exit::Config, error.chain())
    })?;
    let started = wiring::start(config, roles, demo).await.map_err(|error| {
        // The arguments were right; what they lead to is not.
        let invalid = [ErrorKind::Invalid, ErrorKind::Unsupported].contains(&error.kind());
        if invalid {
            Failure::new(Exit::Config, error.chain())
        } else {
            error.into()
        }
    })?;
    let _token = leave_token(&started, config);
    announce(global, &started, config, began, ephemeral, demo).await?;
    notify::ready();
    let (first, second) = signals.first_and_second();
    let report = started.run(first, second).await;
    if let Some(traces) = traces {
        tokio::time::timeout(TRACES, traces.finish()).await.ok();
    }
    print_account(global, &report)?;
    Ok(exit(&report))
}

/// The keys that say where the roles of an app keep what they keep.
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

/// Where these roles keep what they keep, and who said so.
fn chosen(loaded: &Loaded, roles: &[Role]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for role in roles {
        let of_role = |(prefix, _): &&(&str, _)| role.as_str().starts_with(prefix);
        let found = STORES_OF.iter().find(of_role);
        keys.extend(found.iter().flat_map(|(_, keys)| keys.iter()));
    }
    keys.dedup();
    let said = |key: &str| {
        let setting = loaded.settings.get(key)?;
        let url = setting.text.as_deref().map(shown)?;
        Some(format!("{url} ({})", setting.origin))
    };
    let mut all: Vec<String> = Vec::new();
    for key in keys {
        let (others, default): (&[&str], _) = match key {
            "backends.orders" => (&["backends.default", "backends.orders_kv"], EMBEDDED),
            "backends.orders_kv" => (&["backends.orders", "backends.default"], EMBEDDED),
            _ if key.starts_with("backends.") => (&["backends.default"], EMBEDDED),
            _ => (
                &[],
                "a SQLite file in the data folder (nothing else is set)",
            ),
        };
        let mut places = std::iter::once(&key)
            .chain(others)
            .filter_map(|key| said(key));
        let place = places.next().unwrap_or_else(|| default.to_owned());
        let text = format!("{key} = {place}");
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all.join(", ")
}

/// What the report comes to.
fn exit(report: &Report) -> Exit {
    match &report.closing {
        _ if report.failure.is_some() => Exit::Unreachable,
        Ending::Failed(_) => Exit::Unreachable,
        Ending::Cut => Exit::Cut,
        Ending::Finished if report.is_clean() => Exit::Ok,
        Ending::Finished => Exit::Failed,
    }
}

/// Leaves the admin token to this user's command line, whatever folder it runs in.
fn leave_token(started: &Started, config: &Config) -> Option<TokenFile> {
    let token = read_token(&config.data_dir)?;
    TokenFile::leave(&started.admin.to_string(), token)
        .inspect_err(|error| {
            tracing::info!(%error, "the command line has to be told the data folder, with `--data`");
        })
        .ok()
}

/// The banner on a terminal, one line of facts elsewhere.
async fn announce(
    global: &Global,
    started: &Started,
    config: &Config,
    began: Instant,
    ephemeral: bool,
    demo: bool,
) -> Result<(), Failure> {
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
        "gone at exit"
    } else {
        "kept; --ephemeral to discard"
    };
    for warning in &health.warnings {
        tracing::warn!("{warning}");
    }
    if global.quiet {
        return Ok(());
    }
    if !std::io::stdout().is_terminal() || global.format == Format::Json {
        tracing::info!(
            version = version::LINE,
            http = http.as_deref().unwrap_or("none"),
            admin,
            data = %config.data_dir.display(),
            listeners = own_listeners(started).join(" "),
            backend,
            durability,
            elapsed = ?began.elapsed(),
            "ready"
        );
        return Ok(());
    }
    let mut lines = vec![
        String::new(),
        format!(
            "  towpath {} · ready in {} ms",
            env!("CARGO_PKG_VERSION"),
            began.elapsed().as_millis()
        ),
        String::new(),
    ];
    let scheme = match config.tls_certificate {
        Some(_) => "https",
        None => "http",
    };
    if let Some(http) = &http {
        lines.push(format!(
            "  API        {scheme}://{http}     curl -d 'hello' {scheme}://{http}/enqueue"
        ));
    }
    for (role, address) in &started.listeners {
        let address = local(&address.to_string());
        lines.push(format!("  {role:<10} {scheme}://{address}"));
    }
    lines.push(format!(
        "  Admin      http://{admin}     towpath queue ls · /metrics · /openapi.json"
    ));
    lines.push(format!(
        "  Data       {} ({kept})",
        config.data_dir.display()
    ));
    lines.push(format!("  Output     {}", config.output_path().display()));
    lines.push(format!("  Backend    {backend}, durability {durability}"));
    if demo {
        lines.push(format!(
            "  Demo       four messages a second into `{}`; how it goes is logged every five seconds",
            config.queue
        ));
    }
    lines.push(String::new());
    lines.push("  Ctrl-C drains and stops.".to_owned());
    lines.push(String::new());
    for line in lines {
        output::line(line)?;
    }
    Ok(())
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

/// What was done, one line a task.
fn print_account(global: &Global, report: &Report) -> Result<(), Failure> {
    if global.format == Format::Json {
        return Ok(output::json(&account(report))?);
    }
    if global.quiet && report.is_clean() {
        return Ok(());
    }
    output::line(format!(
        "stopped by {} after {:.1?}",
        report.reason, report.drained_in
    ))?;
    if let Some(failure) = &report.failure {
        output::line(format!("  ended at once: {failure}"))?;
    }
    if report.closing != Ending::Finished {
        output::line(format!("  backends: {}", in_words(&report.closing)))?;
    }
    for task in &report.tasks {
        let counts: Vec<String> = task
            .counts
            .iter()
            .map(|(what, count)| format!("{what}={count}"))
            .collect();
        let ending = in_words(&task.ending);
        output::line(format!("  {}: {ending} {}", task.name, counts.join(" ")).trim_end())?;
    }
    Ok(())
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

fn in_words(ending: &Ending) -> String {
    match ending {
        Ending::Finished => "finished".to_owned(),
        Ending::Cut => "cut short".to_owned(),
        Ending::Failed(error) => format!("failed: {error}"),
    }
}
