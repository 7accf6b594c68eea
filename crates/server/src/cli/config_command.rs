//! `towpath config`.

use clap::Subcommand;

use super::{Exit, Failure, Format, Global, output};
use crate::config::{Loaded, Problems, commented_file, json_schema, load, origins_table};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Validate the configuration and list all problems
    #[command(after_help = "Examples:\n  towpath config check")]
    Check,
    /// Show every value
    #[command(after_help = "Examples:\n  towpath config show --origin")]
    Show {
        /// Show the source of each value
        #[arg(long)]
        origin: bool,
    },
    /// Print a commented file with every key
    #[command(after_help = "Examples:\n  towpath config init > towpath.toml")]
    Init,
    /// Print a JSON Schema of the file, for editors
    #[command(after_help = "Examples:\n  towpath config schema")]
    Schema,
}

pub(super) fn run(global: &Global, command: ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Check => {
            let outcome = load(&global.sources()?);
            if global.format == Format::Json {
                return check_as_json(&outcome);
            }
            for warning in outcome?.warnings {
                output::line(format!("warning: {warning}"))?;
            }
            if !global.quiet {
                output::line("the configuration is valid")?;
            }
        }
        ConfigCommand::Show { origin } => {
            let rows = origins_table(&global.load()?);
            if global.format == Format::Json {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|[key, value, from]| serde_json::json!({"key": key, "value": value, "origin": from}))
                    .collect();
                output::json(&rows)?;
            } else if origin {
                output::table(&["KEY", "VALUE", "ORIGIN"], rows.into_iter().map(Vec::from))?;
            } else {
                output::table(
                    &["KEY", "VALUE"],
                    rows.into_iter().map(|[key, value, _]| vec![key, value]),
                )?;
            }
        }
        ConfigCommand::Init => output::text(&commented_file())?,
        ConfigCommand::Schema => output::json(&json_schema())?,
    }
    Ok(Exit::Ok)
}

fn check_as_json(outcome: &Result<Loaded, Problems>) -> Result<Exit, Failure> {
    let (warnings, problems) = match outcome {
        Ok(loaded) => (loaded.warnings.as_slice(), &[][..]),
        Err(problems) => (&[][..], problems.0.as_slice()),
    };
    let problems: Vec<_> = problems
        .iter()
        .map(|one| serde_json::json!({"place": one.place(), "message": one.message}))
        .collect();
    output::json(&serde_json::json!({
        "valid": outcome.is_ok(),
        "warnings": warnings,
        "problems": problems,
    }))?;
    Ok(if outcome.is_ok() {
        Exit::Ok
    } else {
        Exit::Config
    })
}
