//! The page of all backends, written from their rows.

use std::fs;
use std::path::Path;

use towpath_core::backend::Capability;

use super::BACKENDS;

fn page() -> String {
    let mut page = String::from(
        "# Backends\n\nA URL names a backend: `backends.default`, or `backends.ingest` and `backends.orders` for one app alone.\nA missing feature of a backend is refused as unsupported, never imitated.\n\n## Features\n\n",
    );
    let names: Vec<&str> = BACKENDS.iter().map(|row| row.name).collect();
    page.push_str(&format!("| | {} |\n", names.join(" | ")));
    page.push_str(&format!("| --- |{}\n", " --- |".repeat(names.len())));
    for capability in Capability::ALL {
        let cells: Vec<&str> = BACKENDS
            .iter()
            .map(|row| if row.offers(capability) { "yes" } else { "–" })
            .collect();
        page.push_str(&format!(
            "| {} | {} |\n",
            capability.as_str(),
            cells.join(" | ")
        ));
    }
    for row in BACKENDS {
        page.push_str(&format!("\n## {}\n\n", row.name));
        let schemes: Vec<String> = row.schemes.iter().map(|one| format!("`{one}:`")).collect();
        page.push_str(&format!("URLs start with {}.\n\n", schemes.join(", ")));
        page.push_str("| parameter | default | meaning |\n| --- | --- | --- |\n");
        for (name, default, meaning) in row.parameters {
            let default = if default.is_empty() {
                "none".to_owned()
            } else {
                format!("`{default}`")
            };
            page.push_str(&format!("| `{name}` | {default} | {meaning} |\n"));
        }
    }
    page
}

#[test]
fn the_page_of_backends_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/backends.md");
    if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
        fs::write(&path, page()).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&path).unwrap_or_default(),
        page(),
        "run with TOWPATH_UPDATE_DOCS=1"
    );
}
