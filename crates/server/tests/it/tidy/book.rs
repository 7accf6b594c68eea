//! The documents as a book: every page is in the summary, links and anchors lead somewhere, code blocks parse, and
//! commands of `towpath` in them exist.

use std::collections::BTreeSet;
use std::process::Command;

use super::{files, none, root};
use crate::process::{BINARY, able};

/// A fenced block: its page, the line it begins at, its language and text.
struct Block {
    page: String,
    line: usize,
    language: String,
    text: String,
}

fn pages() -> Vec<(String, String)> {
    let mut pages = files("docs", "md");
    for name in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "STYLE.md",
    ] {
        let text = std::fs::read_to_string(root().join(name)).unwrap();
        pages.push((name.to_owned(), text));
    }
    pages
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (page, text) in pages() {
        let mut open: Option<Block> = None;
        for (index, line) in text.lines().enumerate() {
            match (line.trim().strip_prefix("```"), open.take()) {
                (Some(_), Some(block)) => blocks.push(block),
                (Some(language), None) => {
                    open = Some(Block {
                        page: page.clone(),
                        line: index + 1,
                        language: language.trim().to_owned(),
                        text: String::new(),
                    });
                }
                (None, Some(mut block)) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                    open = Some(block);
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{page}: a code block without an end");
    }
    blocks
}

/// The anchor that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|letter| match letter {
            ' ' | '-' => Some('-'),
            '_' => Some('_'),
            letter if letter.is_alphanumeric() => Some(letter),
            _ => None,
        })
        .collect()
}

#[test]
fn anchors_of_links_are_headings() {
    let mut problems = Vec::new();
    for (name, text) in pages() {
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets {
            let Some((path, fragment)) = target.split_once('#') else {
                continue;
            };
            if target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            let file = if path.is_empty() {
                root().join(&name)
            } else {
                root().join(&name).parent().unwrap().join(path)
            };
            if file.extension().is_none_or(|ending| ending != "md") {
                continue;
            }
            let found = std::fs::read_to_string(&file)
                .unwrap_or_default()
                .lines()
                .filter(|line| line.starts_with('#'))
                .any(|line| anchor(line.trim_start_matches('#')) == fragment);
            if !found {
                problems.push(format!("{name}: no heading for {target}"));
            }
        }
    }
    none(problems);
}

#[test]
fn the_summary_lists_every_page_once() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: Vec<&str> = summary
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect();
    let unique: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(listed.len(), unique.len(), "a page is listed twice");
    none(
        files("docs", "md")
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("docs/"))
            .filter(|name| *name != "SUMMARY.md" && !unique.contains(name))
            .map(|name| format!("docs/SUMMARY.md does not list {name}"))
            .collect(),
    );
}

#[test]
fn code_blocks_parse() {
    let mut problems = Vec::new();
    for block in blocks() {
        let place = format!("{}:{}", block.page, block.line);
        let problem = match block.language.as_str() {
            "sh" => {
                let output = Command::new("sh")
                    .args(["-nc", &block.text])
                    .output()
                    .unwrap();
                (!output.status.success())
                    .then(|| String::from_utf8_lossy(&output.stderr).into_owned())
            }
            "python" => {
                let parse = "import ast, sys; ast.parse(sys.argv[1])";
                let output = Command::new("python3")
                    .args(["-c", parse, &block.text])
                    .output();
                // Without Python there is nothing to check with.
                let output = output.ok().filter(|output| !output.status.success());
                output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
            }
            "json" => serde_json::from_str::<serde_json::Value>(&block.text)
                .err()
                .map(|error| error.to_string()),
            "toml" => toml::de::DeTable::parse(&block.text)
                .err()
                .map(|error| error.to_string()),
            "text" | "rust" | "sql" | "yaml" | "mermaid" | "ini" | "http" => None,
            "" => Some(String::from("name the language, `text` for none")),
            other => Some(format!("`{other}` is not a language that is checked")),
        };
        problems.extend(problem.map(|problem| format!("{place}: {problem}")));
    }
    none(problems);
}

/// Commands of `towpath` in a shell block, without what follows a pipe, a redirection or a comment.
fn commands(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| {
        let command = line.trim().strip_prefix("towpath ")?;
        Some(
            command
                .split_whitespace()
                .take_while(|word| !word.starts_with(['#', '|', '>', '&', ';']))
                .collect(),
        )
    })
}

/// The help of a command, or `None` when it does not exist.
fn help(command: &[&str]) -> Option<String> {
    let output = Command::new(BINARY)
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

#[test]
fn commands_in_code_blocks_exist() {
    let mut problems = BTreeSet::new();
    let global = help(&[]).unwrap();
    for block in blocks().iter().filter(|block| block.language == "sh") {
        for words in commands(&block.text) {
            let path: Vec<&str> = words
                .iter()
                .copied()
                .take_while(|word| {
                    word.chars()
                        .all(|letter| letter.is_ascii_lowercase() || letter == '-')
                })
                .filter(|word| !word.starts_with('-'))
                .take(3)
                .collect();
            // The longest beginning that has help of its own; the rest are arguments.
            let help = (1..=path.len())
                .rev()
                .find_map(|length| help(&path[..length]));
            let Some(help) = help else {
                problems.insert(format!(
                    "{}:{}: towpath {}",
                    block.page,
                    block.line,
                    words.join(" ")
                ));
                continue;
            };
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap_or(flag);
                if !help.contains(flag) && !global.contains(flag) {
                    problems.insert(format!(
                        "{}:{}: `{flag}` of towpath {}",
                        block.page,
                        block.line,
                        words.join(" ")
                    ));
                }
            }
        }
    }
    none(problems.into_iter().collect());
}

#[test]
fn mdbook_builds_the_book() {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || std::path::PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        std::path::PathBuf::from,
    );
    let mdbook = cache.join("towpath/mdbook/bin/mdbook");
    if !able("mdbook", mdbook.exists()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(&mdbook)
        .arg("build")
        .arg(root().join("docs"))
        .arg("--dest-dir")
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("WARN") && !said.contains("ERROR"),
        "{said}"
    );
    for page in ["index.html", "concepts/queue.html", "reference/cli.html"] {
        assert!(folder.path().join(page).exists(), "{page}: {said}");
    }
}
