//! `towpath audit`: the newest records of the audit trail.

use std::collections::VecDeque;

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::EntryView;
use crate::auth::{AUDIT_STREAM, Record};
use crate::http::{encoded, segment};

/// Records asked for at once.
const PAGE: usize = 1000;

/// Options of `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Records are entries of the stream `towpath.audit`.\n\nExamples:\n  towpath audit\n  towpath audit --max 500 --output json"
)]
pub(super) struct AuditArgs {
    /// Maximum number of records
    #[arg(long, default_value_t = 50)]
    max: usize,
}

/// A record with its place in the stream.
#[derive(Serialize)]
struct Stored {
    offset: String,
    #[serde(flatten)]
    record: Record,
}

pub(super) async fn run(global: &Global, args: AuditArgs) -> Result<Exit, Failure> {
    let client = Client::new(global)?;
    let path = format!("/v1/streams/{}/entries?max={PAGE}", segment(AUDIT_STREAM));
    let mut newest = VecDeque::new();
    let mut after = None::<String>;
    loop {
        let after_it = after.as_ref().map(|after| encoded(after));
        let page = after_it.map_or_else(|| path.clone(), |after| format!("{path}&after={after}"));
        let page: Option<Vec<EntryView>> = client.find(&page).await?;
        let page = page.unwrap_or_default();
        let (is_last, last) = (page.len() < PAGE, page.last());
        after = last.map(|entry| entry.offset.clone());
        for entry in page {
            // Another program may have appended something else.
            if let Ok(record) = serde_json::from_str(&entry.payload.payload) {
                let offset = entry.offset;
                newest.push_back(Stored { offset, record });
            }
            if newest.len() > args.max {
                newest.pop_front();
            }
        }
        if is_last {
            break;
        }
    }
    if global.format == Format::Json {
        output::json(&newest)?;
        return Ok(Exit::Ok);
    }
    if newest.is_empty() {
        output::note("no audit records yet; changes and refused credentials are recorded");
        return Ok(Exit::Ok);
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = newest.into_iter().map(|Stored { record, .. }| {
        let status = record.status.map(|status| status.to_string());
        let what = record.action.unwrap_or(record.event);
        vec![
            record.time,
            or_none(record.actor),
            or_none(record.client),
            what,
            or_none(record.object),
            or_none(status.or(record.reason)),
        ]
    });
    let headings = ["TIME", "ACTOR", "CLIENT", "ACTION", "OBJECT", "OUTCOME"];
    output::table(&headings, rows)?;
    Ok(Exit::Ok)
}
