//! The page of every command, from the commands themselves; common options are shown once, at the top.

use super::Cli;
use super::exit::TABLE;

fn describe(command: &mut clap::Command, path: &str, page: &mut String) {
    let is_first = !path.contains(' ');
    let help = command
        .clone()
        .mut_args(|arg| {
            let shared =
                arg.is_global_set() || ["help", "version"].contains(&arg.get_id().as_str());
            arg.hide(shared && !is_first)
        })
        .term_width(100)
        .render_long_help()
        .to_string();
    let is_shown = |line: &&str| !line.starts_with("Options of every command: see");
    let lines: Vec<&str> = help.lines().map(str::trim_end).filter(is_shown).collect();
    page.push_str(&format!(
        "## `{path}`\n\n```text\n{}\n```\n\n",
        lines.join("\n").trim()
    ));
    let there = command.get_subcommands_mut();
    for inner in there.filter(|inner| inner.get_name() != "help") {
        let path = format!("{path} {}", inner.get_name());
        describe(inner, &path, page);
    }
}

#[test]
fn the_reference_page_shows_every_command() {
    let mut command = Cli::page();
    let mut page = String::from("# Commands\n\n| exit code | meaning |\n| --- | --- |\n");
    for (exit, meaning) in TABLE {
        page.push_str(&format!("| {} | {meaning} |\n", exit as u8));
    }
    page.push_str(
        "\nThe options under `towpath` are those of every command, and are not repeated.\n\n",
    );
    describe(&mut command, "towpath", &mut page);
    let page = format!("{}\n", page.trim_end());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");
    if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        page,
        "run with TOWPATH_UPDATE_DOCS=1"
    );
}
