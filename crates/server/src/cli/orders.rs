//! `towpath orders`: the books of the orders app.

use clap::Subcommand;
use towpath_core::units;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::apps::orders::Balance;

/// Lost orders that are named; the rest is counted.
const NAMED: usize = 100;

/// What to do with orders.
#[derive(Debug, Subcommand)]
pub(super) enum OrdersCommand {
    /// Reconcile the counts: accepted = processed + rejected + in flight + dead; name the cause of a difference
    #[command(
        after_help = "Exits with 5 when the counts do not reconcile. Where another program accepts or processes orders too, it says that they cannot be checked.\n\nExamples:\n  towpath orders check"
    )]
    Check,
}

pub(super) async fn run(global: &Global, command: OrdersCommand) -> Result<Exit, Failure> {
    let OrdersCommand::Check = command;
    let client = Client::of(global, &["orders."])?;
    let balance: Balance = client.get("/v1/orders/check").await?;
    if global.format == Format::Json {
        output::json(&balance)?;
    } else if !(global.quiet && balance.balanced) {
        show(&balance)?;
    }
    Ok(if balance.balanced || is_unknown(&balance) {
        Exit::Ok
    } else {
        Exit::Problems
    })
}

/// Whether other programs took part, and no more orders are missing than they can have processed.
fn is_unknown(balance: &Balance) -> bool {
    balance.by_others > 0 && balance.lost.len() as u64 <= balance.by_others
}

fn show(balance: &Balance) -> Result<(), Failure> {
    let numbers = [
        ("accepted", balance.accepted),
        ("processed", balance.processed),
        ("rejected", balance.rejected),
        ("in flight", balance.in_flight),
        ("dead", balance.dead),
        ("notified", balance.notified),
        ("poison", balance.poison),
    ];
    let rows = numbers.map(|(what, count)| vec![what.to_owned(), units::count(count)]);
    output::table(&["ORDERS", "COUNT"], rows)?;
    let sum = balance.processed + balance.rejected + balance.in_flight + balance.dead;
    let sides = format!(
        "{} accepted = {} processed + {} rejected + {} in flight + {} dead",
        balance.accepted, balance.processed, balance.rejected, balance.in_flight, balance.dead
    );
    if balance.stranded > 0 {
        output::note(format!(
            "{} messages wait on another broker of the list; `towpath queue collect orders.queue` moves them",
            balance.stranded
        ));
    }
    if is_unknown(balance) {
        return Ok(output::line(format!(
            "not checked: {} orders were accepted or processed by another program, which keeps no records; the counts reconcile where gateway and processor are Towpath's",
            balance.by_others
        ))?);
    }
    if balance.balanced {
        return Ok(output::line(format!("balanced: {sides}"))?);
    }
    output::line(format!(
        "not balanced: {}",
        sides.replace(
            " = ",
            if balance.accepted == sum {
                " = "
            } else {
                " ≠ "
            }
        )
    ))?;
    for id in balance.lost.iter().take(NAMED) {
        output::line(format!(
            "  {id}: accepted, and neither finished, nor waiting, nor among the dead letters"
        ))?;
    }
    if balance.lost.len() > NAMED {
        output::line(format!("  and {} more", balance.lost.len() - NAMED))?;
    }
    Ok(())
}
