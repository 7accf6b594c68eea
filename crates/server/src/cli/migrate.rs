//! `towpath migrate`: the tables of the accounts app's database.

use std::path::Path;

use clap::Subcommand;
use towpath_core::database::{Migration, MigrationState};

use super::queue::confirm;
use super::{Exit, Failure, Format, Global, output};
use crate::wiring::open_database;

/// What to do with the tables.
#[derive(Debug, Subcommand)]
pub(super) enum MigrateCommand {
    /// Apply pending migrations
    #[command(
        after_help = "`towpath up` and `towpath run accounts.api` do the same as they start. Processes that migrate at once take turns.\n\nExamples:\n  towpath migrate up"
    )]
    Up,
    /// Revert the last migration; drops the tables it created and keeps adopted ones
    #[command(
        after_help = "`--all` gives a database of another deployment back as it was found: `users` and `outbox_events` are its tables again, with the changes made since. Stop the roles of Towpath first; they migrate as they start.\n\nExamples:\n  towpath migrate down --all"
    )]
    Down {
        /// Revert all migrations
        #[arg(long)]
        all: bool,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
    /// List migrations and their state
    #[command(after_help = "Examples:\n  towpath migrate status")]
    Status,
}

pub(super) async fn run(global: &Global, command: MigrateCommand) -> Result<Exit, Failure> {
    let loaded = global.load()?;
    let url = loaded.config.accounts.database.expose();
    // Only commands that create tables may create a database for them.
    if !matches!(command, MigrateCommand::Up)
        && let Some(path) = url.strip_prefix("sqlite:")
        && !Path::new(path).exists()
    {
        let text = format!("there is no database `{path}`; `towpath migrate up` makes it");
        return Err(Failure::failed(text));
    }
    let database = open_database(url).await?;
    match command {
        MigrateCommand::Up => {
            let applied = database.schema.up().await?;
            for migration in &applied {
                print(global, migration, "applied")?;
            }
            if !applied.is_empty() {
                let versions = listed(&applied);
                Global::leave(&loaded.config, "migrate up", database.url.clone(), versions);
            }
            if applied.is_empty() && !global.quiet {
                output::line(format!("{} has every migration", database.url))?;
            }
        }
        MigrateCommand::Down { all, yes } => {
            let states = database.schema.status().await?;
            let last = states.iter().rev().find(|state| state.applied_at.is_some());
            let Some(last) = last else {
                output::line(format!("{} has no migration", database.url))?;
                return Ok(Exit::Ok);
            };
            let (version, name) = (last.migration.version, last.migration.name);
            let url = &database.url;
            let which = match all {
                true => "every migration".to_owned(),
                false => format!("migration {version} ({name})"),
            };
            confirm(
                yes,
                &format!("Undo {which} of {url}, and drop the tables that it made?"),
            )?;
            let undone = database.schema.down(all).await?;
            let versions = listed(&undone);
            Global::leave(
                &loaded.config,
                "migrate down",
                database.url.clone(),
                versions,
            );
            for migration in &undone {
                print(global, migration, "undone")?;
            }
        }
        MigrateCommand::Status => show(global, &database.schema.status().await?)?,
    }
    Ok(Exit::Ok)
}

/// The versions of migrations, for the audit trail.
fn listed(migrations: &[Migration]) -> Option<String> {
    let versions: Vec<_> = migrations.iter().map(|it| it.version.to_string()).collect();
    Some(versions.join(" "))
}

fn print(global: &Global, migration: &Migration, what: &str) -> Result<(), Failure> {
    if !global.quiet {
        output::line(format!("{} {}: {what}", migration.version, migration.name))?;
    }
    Ok(())
}

fn show(global: &Global, states: &[MigrationState]) -> Result<(), Failure> {
    let time = |state: &MigrationState| state.applied_at.map(|time| time.to_string());
    if global.format == Format::Json {
        let all = states.iter().map(|state| {
            serde_json::json!({
                "version": state.migration.version,
                "name": state.migration.name,
                "applied_at": time(state),
            })
        });
        return Ok(output::json(&all.collect::<Vec<_>>())?);
    }
    let rows = states.iter().map(|state| {
        vec![
            state.migration.version.to_string(),
            state.migration.name.to_owned(),
            time(state).unwrap_or_else(|| "-".to_owned()),
        ]
    });
    Ok(output::table(&["VERSION", "NAME", "APPLIED"], rows)?)
}
