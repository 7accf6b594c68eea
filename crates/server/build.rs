//! Puts the commit into the version, when there is one to be known.
//!
//! `TOWPATH_COMMIT` says it; without it the repository around the sources does.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=TOWPATH_COMMIT");
    // Moves with every commit and checkout; a missing file would cause a rebuild each time.
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.git/logs/HEAD");
    if head.exists() {
        println!("cargo:rerun-if-changed={}", head.display());
    }
    let commit = std::env::var("TOWPATH_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty())
        .or_else(|| head.exists().then(from_git).flatten())
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
}

fn from_git() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
