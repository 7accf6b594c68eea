//! `scripts/commit-msg` accepts messages in the style of `STYLE.md`, and says what to change in others.

use std::process::Command;

use super::root;

/// The complaint of the script about a message; `None` when it accepts it.
fn objection(message: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("COMMIT_EDITMSG");
    std::fs::write(&file, message).unwrap();
    let output = Command::new("sh")
        .arg(root().join("scripts/commit-msg"))
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    (!said.is_empty()).then_some(said)
}

const BODY: &str =
    "\n\nAn interrupted delivery waited for its lease to expire. It is ready at once now.\n";

#[test]
fn imperative_titles_with_a_reason_are_accepted() {
    for title in [
        "Return interrupted deliveries at once",
        "Inspect, pause and resume queues",
        "Pass the tenant through the relay",
        "Address review of the Kafka consumer",
        "Embed the schema in the binary",
    ] {
        assert_eq!(objection(&format!("{title}{BODY}")), None, "{title}");
    }
}

#[test]
fn messages_of_git_itself_are_accepted() {
    for message in ["Merge branch 'x'\n", "Revert \"Add y\"\n", "fixup! Add y\n"] {
        assert_eq!(objection(message), None, "{message}");
    }
}

#[test]
fn titles_of_another_form_are_refused_with_the_reason() {
    let long = format!("Return {}", "x".repeat(70));
    for (title, reason) in [
        (long.as_str(), "72 characters"),
        ("Returned deliveries at once", "imperative"),
        ("Returning deliveries at once", "imperative"),
        ("Returns deliveries at once", "imperative"),
        ("return deliveries at once", "capital"),
        ("Return deliveries at once.", "full stop"),
        ("Return deliveries; rename the pump", "one topic"),
        ("fix: return deliveries at once", "capital"),
    ] {
        let said = objection(&format!("{title}{BODY}")).unwrap_or_default();
        assert!(said.contains(reason), "{title}: {said}");
    }
}

#[test]
fn a_body_is_required_and_comments_and_trailers_are_not_one() {
    for message in [
        "Return deliveries at once\n",
        "Return deliveries at once\n\n# Please enter the commit message\n",
        "Return deliveries at once\n\nSigned-off-by: A B <a@example.com>\n",
    ] {
        let said = objection(message).unwrap_or_default();
        assert!(said.contains("body"), "{message}: {said}");
    }
    let said = objection("Return deliveries at once\nwithout an empty line\n").unwrap_or_default();
    assert!(said.contains("empty line"), "{said}");
}
