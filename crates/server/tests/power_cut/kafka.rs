//! The power of a Kafka is cut, which acknowledges before it syncs: lost messages are counted, and Towpath reports them.

use libtest_mimic::Failed;
use serde_json::Value;
use towpath_testkit::ledger::{Account, violations};

use crate::brokers::KAFKA;
use crate::servers::{drive, rounds};

/// Cuts as often as `TOWPATH_SEEDS` says.
pub(crate) fn names_lost_messages() -> Result<(), Failed> {
    for round in rounds(&KAFKA) {
        let (mut place, cuts) = round?;
        let (running, doubted) = drive(&mut place, &KAFKA, cuts)?;
        let history = place.ledger.history()?;
        let account = Account::of(&history);
        place.tell(&account, doubted);
        if let Some(other) = violations(&history)
            .iter()
            .find(|violation| violation.name != "acknowledged_is_present")
        {
            return Err(format!("{}: {other}", place.name()).into());
        }
        let named = named(&running.log());
        eprintln!("{}: {named} records named as lost", place.name());
        // A process that died with its broker can only compare with the records that the broker kept.
        if !place.both && named < u64::try_from(account.lost)? {
            return Err(format!(
                "{}: {} records were lost, and {named} named:\n{}",
                place.name(),
                account.lost,
                running.log()
            )
            .into());
        }
        let health = place.world.json_of(&["doctor"]).to_string();
        if named > 0 && !health.contains("lost") {
            return Err(format!("{}: `doctor` names no loss: {health}", place.name()).into());
        }
        place.ledger.discard();
    }
    Ok(())
}

/// The sum of the records that the log names.
fn named(log: &str) -> u64 {
    let lines = log.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_loss = line["message"].as_str()?.starts_with("records lost");
        is_loss.then(|| line["records"].as_u64()).flatten()
    });
    lines.sum()
}
