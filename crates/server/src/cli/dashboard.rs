//! `towpath dashboard`: a link that signs a browser in.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

use clap::Args;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::SignInCode;

/// Programs that open an address in the user's browser.
const OPENERS: [&str; 3] = ["xdg-open", "open", "wslview"];

/// Options of `dashboard`.
#[derive(Debug, Args)]
#[command(
    after_help = "The link signs a browser in once, within ten minutes, with the scopes of your token or key.\n\nExamples:\n  towpath dashboard\n  towpath dashboard --print"
)]
pub(super) struct DashboardArgs {
    /// Print the link only; do not open a browser
    #[arg(long)]
    print: bool,
}

pub(super) async fn run(global: &Global, args: DashboardArgs) -> Result<Exit, Failure> {
    let client = Client::new(global)?;
    let made: SignInCode = client
        .post("/v1/session/code", &serde_json::json!({}))
        .await?;
    let link = link(client.base(), &made.code);
    if global.format == Format::Json {
        let expires_in = made.expires_in;
        output::json(&serde_json::json!({ "link": link, "expires_in": expires_in }))?;
        return Ok(Exit::Ok);
    }
    output::line(&link)?;
    if !args.print && std::io::stdout().is_terminal() && !open(&link) {
        output::note("no program here opens a browser; open the link yourself");
    }
    Ok(Exit::Ok)
}

/// The address of the dashboard with a code, which stays in the browser: a fragment is not sent.
pub(super) fn link(base: &str, code: &str) -> String {
    format!("{}/#login={code}", base.trim_end_matches('/'))
}

fn open(link: &str) -> bool {
    OPENERS.iter().any(|program| {
        let mut command = Command::new(program);
        let command = command.arg(link).stdin(Stdio::null());
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}
