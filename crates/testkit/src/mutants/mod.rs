//! Wrong backends: each breaks one promise, and a named case must notice.

mod effects;
mod kv;
mod queue;
mod rate_limit;
mod routes;
mod stream;

use libtest_mimic::Failed;
use towpath_core::backend::Backend;

use crate::{Case, Subject, World, areas, run};

/// One way to be wrong, and who notices.
pub struct Mutant {
    /// What it does wrong.
    pub name: &'static str,
    /// The port that is wrong.
    pub area: &'static str,
    /// The case of that port that must go red.
    pub caught_by: &'static str,
    wrap: fn(Backend) -> Backend,
}

macro_rules! mutants {
    ($($port:ident: { $($name:ident $way:ident caught by $case:ident;)* })*) => {
        /// Every mutant.
        pub const MUTANTS: &[Mutant] = &[$($(Mutant {
            name: stringify!($name),
            area: stringify!($port),
            caught_by: stringify!($case),
            wrap: |mut backend| {
                backend.$port = backend.$port.map(|inner| $port::wrong(inner, $port::Way::$way));
                backend
            },
        }),*),*];
    };
}

mutants! {
    queue: {
        forgets_retries RetryAcks caught by a_retried_delivery_comes_back_with_its_attempt_raised;
        redelivers_early ShortLease caught by does_not_redeliver_before_the_lease_expires;
        accepts_stale_receipts AcceptsStale caught by refuses_a_stale_receipt;
        loses_the_last_of_a_batch LosesLast caught by gives_back_what_was_enqueued;
        forgets_dedup_ids NoDedup caught by recognises_a_repeated_dedup_id;
        ignores_pause NoPause caught by a_paused_queue_takes_and_does_not_give;
        drops_headers NoHeaders caught by keeps_headers_and_id;
        never_raises_the_attempt FirstAttempt caught by redelivers_after_the_lease_expires;
        redrives_one_too_few RedrivesLess caught by redrives_with_the_same_id_and_fresh_attempts;
        charges_releases ReleaseCharges caught by a_released_delivery_is_not_charged;
        forgets_the_dead ForgetsTheDead caught by a_disconnected_consumers_deliveries_come_back_at_once;
        ignores_keys NoKeys caught by delivers_one_message_of_a_key_at_a_time;
        delivers_delayed_at_once NoDelay caught by holds_a_delayed_message_back;
        purges_the_leased PurgesTheLeased caught by a_purge_spares_what_is_in_hand_or_dead;
        counts_no_retries CountsNoRetries caught by a_retried_delivery_comes_back_with_its_attempt_raised;
        charges_releases_now_and_then ReleaseCharges caught by random_steps_agree_with_the_model;
    }
    routes: {
        swallows_the_unroutable SwallowsUnroutable caught by an_unroutable_message_is_an_error_and_stored_nowhere;
        keeps_what_is_unbound NoUnbind caught by bindings_stay_until_unbound;
    }
    stream: {
        commits_up_to_the_newest CommitsTheNewest caught by a_finished_prefix_ends_at_the_first_unfinished_entry;
        claims_from_the_living ClaimsEarly caught by an_entry_can_be_claimed_once_it_was_held_for_long;
        trims_what_is_unread TrimsTheUnread caught by trims_below_the_slowest_group;
        forgets_dedup_ids NoDedup caught by recognises_a_repeated_entry;
        counts_no_attempts FirstAttempt caught by hands_out_entries_in_order_and_once;
        resets_an_existing_group ResetsGroups caught by an_existing_group_keeps_its_position;
        keeps_what_the_gone_held ForgetsTheGone caught by what_a_disconnected_consumer_held_can_be_claimed_at_once;
        gives_everybody_everything SharesNothing caught by consumers_of_a_group_share_the_entries;
        counts_what_is_held_as_done CountsWhatIsHeld caught by tells_lag_pending_and_age;
    }
    kv: {
        ignores_bounds NoBounds caught by a_counter_stays_within_its_bounds;
        commits_one_by_one OneByOne caught by several_ops_are_all_or_none;
        swaps_without_comparing NoCompare caught by compares_before_it_swaps;
        forgets_ttls NoTtl caught by keeps_keys_across_reopen;
    }
    rate_limit: {
        admits_too_many Admits caught by many_takers_never_get_more_than_the_rule_allows;
        admits_too_many_over_time Admits caught by no_stretch_of_time_admits_more_than_capacity_and_refill;
        takes_one_by_one OneByOne caught by several_takes_are_all_or_none;
        names_too_short_a_time ShortTime caught by the_time_it_names_is_the_time_it_keeps;
    }
    effects: {
        applies_half Half caught by nothing_happens_when_a_receipt_is_stale;
        applies_half_of_what_does_not_fit Half caught by nothing_happens_when_a_queue_is_full;
        forgets_what_it_sends NoEnqueue caught by everything_happens_in_one_step;
    }
}

/// The case that must notice.
fn case_of(mutant: &Mutant) -> Option<Case> {
    areas()
        .into_iter()
        .filter(|(area, _)| *area == mutant.area)
        .flat_map(|(_, cases)| cases)
        .find(|case| case.name == mutant.caught_by)
}

/// Whether the row offers what the case needs; a missing case is reported by its trial.
pub(crate) fn applies(mutant: &Mutant, subject: &Subject) -> bool {
    case_of(mutant).is_none_or(|case| case.lacks(subject).is_none())
}

/// Passes when the case fails on the mutant.
pub(crate) fn is_caught(mutant: &'static Mutant, subject: &'static Subject) -> Result<(), Failed> {
    let case = case_of(mutant).ok_or_else(|| format!("there is no case `{}`", mutant.caught_by))?;
    match run(case, World::wrapped(subject, mutant.wrap)) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!(
            "`{}` passes although the backend {}",
            case.name, mutant.name
        )
        .into()),
    }
}
