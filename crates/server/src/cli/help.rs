//! The front page: commands in groups, because ten in a row say little to a newcomer.

use std::fmt::Write;

use clap::Command;

/// Every command stands in one group; a test compares them with the commands there are.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Run", &["up", "run", "roles"]),
    (
        "Messages",
        &[
            "send", "job", "queue", "stream", "dlq", "kv", "orders", "lines", "outbox", "backfill",
            "fleet", "task",
        ],
    ),
    (
        "Check",
        &[
            "status",
            "dashboard",
            "health",
            "doctor",
            "ps",
            "audit",
            "version",
        ],
    ),
    (
        "Set up",
        &[
            "config",
            "init",
            "key",
            "migrate",
            "backup",
            "restore",
            "verify",
            "completions",
            "help",
        ],
    ),
];

/// Gives the front page its groups.
pub(super) fn grouped(mut command: Command) -> Command {
    command = command.mut_subcommands(with_note);
    command.build();
    // The pages of commands leave them to this one.
    let command = command.mut_args(|arg| {
        let is_ours = arg.is_global_set() && arg.get_id() != "json";
        if is_ours { arg.hide(false) } else { arg }
    });
    let header = *command.get_styles().get_header();
    let literal = *command.get_styles().get_literal();
    let mut page = String::new();
    for (title, names) in GROUPS {
        write!(page, "\n{header}{title}:{header:#}\n").expect("writing to a string cannot fail");
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            writeln!(page, "  {literal}{name:<12}{literal:#} {about}")
                .expect("writing to a string cannot fail");
        }
    }
    let options = format!("{header}Options of every command:{header:#}");
    command.help_template(format!(
        "{{about}}\n\n{{usage-heading}} {{usage}}\n{page}\n{options}\n{{options}}{{after-help}}"
    ))
}

/// Says on the page of a command where the options of every command are.
fn with_note(command: Command) -> Command {
    let note = "Options of every command: see `towpath --help`.";
    let examples = { command.get_after_help() }.map(ToString::to_string);
    let text = examples.map_or_else(|| note.to_owned(), |text| format!("{text}\n\n{note}"));
    command.after_help(text).mut_subcommands(with_note)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_stands_in_one_group() {
        let mut command = crate::cli::Cli::command();
        command.build();
        let mut there: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        let mut grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        there.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, there);
    }
}
