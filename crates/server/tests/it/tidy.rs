//! Rules of the tree that no compiler checks.

mod allowed;
mod book;
mod commits;
mod language;
mod names;
mod prose;
mod sleeps;
mod structure;

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Every file below `folder` with this ending, as its path from the root and its text.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|extension| extension == ending)
            {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no .{ending} under {folder}");
    found
}

/// Every text file of the tree without build output and data, as its path from the root and its text.
fn tree() -> Vec<(String, String)> {
    let skipped = ["target", ".git", "towpath-data", "corpus", "artifacts"];
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !skipped.iter().any(|name| path.ends_with(name)) {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, text));
            }
        }
    }
    found
}

/// The code of a file: its lines without comments, up to its tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, line))
}

fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_module_opens_with_its_job() {
    none(
        files("crates", "rs")
            .into_iter()
            .filter(|(_, text)| !text.starts_with("//!"))
            .map(|(name, _)| format!("{name}: no `//!` at the top"))
            .collect(),
    );
}

#[test]
fn only_wiring_and_stores_name_the_backends() {
    let mut problems = Vec::new();
    for (name, text) in files("crates/server/src", "rs") {
        if name.contains("/src/wiring/") || name.ends_with("/src/stores.rs") {
            continue;
        }
        for (line, text) in code(&text) {
            if text.contains("towpath_backends") {
                problems.push(format!("{name}:{line}: {}", text.trim()));
            }
        }
    }
    none(problems);
}

#[test]
fn core_depends_on_no_driver_and_performs_no_io() {
    let manifest = fs::read_to_string(root().join("crates/core/Cargo.toml")).unwrap();
    for driver in [
        "tokio", "redis", "lapin", "rdkafka", "postgres", "rusqlite", "hyper", "reqwest", "axum",
    ] {
        assert!(!manifest.contains(driver), "core depends on {driver}");
    }
    let mut problems = Vec::new();
    for (name, text) in files("crates/core/src", "rs") {
        for (line, text) in code(&text) {
            if ["std::fs", "std::net", "std::process", "std::env"]
                .iter()
                .any(|io| text.contains(io))
            {
                problems.push(format!("{name}:{line}: {}", text.trim()));
            }
        }
    }
    none(problems);
}

#[test]
fn a_backends_own_words_stay_in_its_folder() {
    let words = [
        "XADD",
        "XREADGROUP",
        "BRPOP",
        "LPUSH",
        "BLMOVE",
        "basic_publish",
        "rdkafka",
        "lapin",
        "rusqlite",
    ];
    let mut problems = Vec::new();
    for folder in [
        "crates/core/src",
        "crates/towpath/src",
        "crates/server/src",
        "crates/testkit/src",
    ] {
        for (name, text) in files(folder, "rs") {
            for (line, text) in code(&text) {
                for word in words {
                    if text.contains(word) {
                        problems.push(format!("{name}:{line}: `{word}`"));
                    }
                }
            }
        }
    }
    none(problems);
}

#[test]
fn tasks_are_started_by_the_supervisor_or_say_why_not() {
    let mut problems = Vec::new();
    for (name, text) in files("crates", "rs") {
        if name.contains("/tests/")
            || name.ends_with("supervisor.rs")
            || name == "crates/backends/src/task.rs"
            || name.starts_with("crates/testkit")
        {
            continue;
        }
        let lines: Vec<&str> = text
            .lines()
            .take_while(|line| line.trim() != "#[cfg(test)]")
            .collect();
        for (index, line) in lines.iter().enumerate() {
            let explained = lines[index.saturating_sub(6)..index]
                .iter()
                .any(|line| line.trim_start().starts_with("//"));
            let is_spawn = line.contains("tokio::spawn(") || line.contains("task::spawn(");
            if is_spawn && !explained {
                problems.push(format!(
                    "{name}:{}: a task outside the supervisor has a sentence above it",
                    index + 1
                ));
            }
        }
    }
    none(problems);
}

#[test]
fn nothing_is_left_open() {
    // Written apart, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    let mut problems = Vec::new();
    let mut texts = files("crates", "rs");
    texts.extend(files("docs", "md"));
    for (name, text) in texts {
        for (index, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                problems.push(format!("{name}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    none(problems);
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut problems = Vec::new();
    let mut texts = files("docs", "md");
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        texts.push((
            name.to_owned(),
            fs::read_to_string(root().join(name)).unwrap(),
        ));
    }
    for (name, text) in texts {
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if target.contains("://")
                || target.starts_with('#')
                || target.contains(char::is_whitespace)
            {
                continue;
            }
            let path = target.split('#').next().unwrap();
            if !root().join(&name).parent().unwrap().join(path).exists() {
                problems.push(format!("{name}: {target}"));
            }
        }
    }
    none(problems);
}
