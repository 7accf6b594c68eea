//! `towpath version`: the facts about this binary for a bug report.

use serde::Serialize;

use super::{Exit, Failure, Format, Global, output};
use crate::wiring::{BACKENDS, FORMATS, Role};

/// The version with the commit it was built from, as `-V` prints it.
pub(super) const LINE: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

#[derive(Serialize)]
struct Version {
    version: &'static str,
    commit: &'static str,
    /// Readable formats on disk: name and newest version.
    formats: Vec<(&'static str, u32)>,
    backends: Vec<&'static str>,
    roles: Vec<&'static str>,
}

pub(super) fn run(global: &Global) -> Result<Exit, Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("BUILD_COMMIT"),
        formats: FORMATS.to_vec(),
        backends: BACKENDS.iter().map(|backend| backend.name).collect(),
        roles: Role::all().map(Role::as_str).collect(),
    };
    if global.format == Format::Json {
        output::json(&version)?;
        return Ok(Exit::Ok);
    }
    let formats: Vec<String> = version
        .formats
        .iter()
        .map(|(name, number)| format!("{name} {number}"))
        .collect();
    output::line(format!("towpath {}", version.version))?;
    for (what, text) in [
        ("commit", version.commit.to_owned()),
        ("formats", formats.join(", ")),
        ("backends", version.backends.join(", ")),
        ("roles", version.roles.join(", ")),
    ] {
        output::line(format!("  {what:<10}{text}"))?;
    }
    Ok(Exit::Ok)
}
