//! Mutants: backends with one fault each, which a named case must detect.

mod effects;
mod kv;
mod queue;
mod rate_limit;
mod routes;
mod source_offsets;
mod stream;

use libtest_mimic::Failed;
use towpath_core::backend::Backend;

use crate::{Case, Subject, World, areas, run};

/// A fault, and the case that detects it.
pub struct Mutant {
    /// Its fault, as a name.
    pub name: &'static str,
    /// The faulty port.
    pub area: &'static str,
    /// The case of that port that must fail.
    pub caught_by: &'static str,
    wrap: fn(Backend) -> Backend,
}

macro_rules! mutants {
    ($($port:ident: { $($name:ident $mutation:ident caught by $case:ident;)* })*) => {
        /// Every mutant.
        pub const MUTANTS: &[Mutant] = &[$($(Mutant {
            name: stringify!($name),
            area: stringify!($port),
            caught_by: stringify!($case),
            wrap: |mut backend| {
                backend.source_offsets = backend.require_source_offsets("the suite").ok();
                backend.$port = backend.$port.map(|inner| $port::mutate(inner, $port::Mutation::$mutation));
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
        loses_the_last_of_a_batch LosesLast caught by delivers_payloads_unchanged;
        forgets_dedup_ids NoDedup caught by recognises_a_repeated_dedup_id;
        ignores_pause NoPause caught by a_paused_queue_accepts_and_does_not_deliver;
        drops_headers NoHeaders caught by keeps_headers_and_id;
        never_raises_the_attempt FirstAttempt caught by redelivers_after_the_lease_expires;
        redrives_one_too_few RedrivesLess caught by redrives_with_the_same_id_and_fresh_attempts;
        charges_releases ReleaseCharges caught by a_released_delivery_is_not_charged;
        releases_without_delay ReleaseAtOnce caught by a_delayed_release_is_not_charged;
        never_says_interrupted NeverInterrupted caught by a_delivery_without_an_outcome_marks_the_next_one;
        forgets_the_dead ForgetsTheDead caught by a_disconnected_consumers_deliveries_come_back_at_once;
        ignores_keys NoKeys caught by delivers_one_message_of_a_key_at_a_time;
        delivers_delayed_at_once NoDelay caught by delivers_a_delayed_message_when_due;
        purges_the_leased PurgesTheLeased caught by a_purge_keeps_leased_and_dead_messages;
        counts_no_retries CountsNoRetries caught by a_retried_delivery_comes_back_with_its_attempt_raised;
        charges_releases_now_and_then ReleaseCharges caught by random_steps_agree_with_the_model;
        keeps_a_key_only_while_it_likes NoKeys caught by keeps_the_key;
        forgets_keys_of_retries NoKeys caught by a_retry_is_not_overtaken_by_its_key;
        forgets_keys_of_the_dead NoKeys caught by a_dead_letter_unlocks_its_key;
        forgets_keys_of_the_purged NoKeys caught by purging_a_retry_unlocks_its_key;
        forgets_keys_of_the_late NoKeys caught by a_late_extension_locks_its_key_again;
        forgets_dedup_ids_within_a_batch NoDedup caught by recognises_a_repeat_within_one_batch;
        forgets_dedup_ids_on_the_way NoDedup caught by remembers_a_dedup_id_across_reopen;
        counts_no_duplicates NoDedup caught by keeps_every_count_across_reopen;
        remembers_dedup_ids_too_long LongWindow caught by forgets_a_dedup_id_after_its_window;
        forgets_its_settings ForgetsSettings caught by settings_are_those_declared_last;
        ignores_the_depth NoMaxDepth caught by a_full_queue_refuses_with_a_retry_time;
        keeps_the_expired NoExpiry caught by drops_an_expired_message;
        keeps_the_expired_and_their_keys NoExpiry caught by an_expired_message_unlocks_its_key;
        extends_nothing NoExtend caught by an_extended_lease_lasts;
        extends_nothing_late NoExtend caught by extends_an_expired_lease_that_was_not_reassigned;
        delivers_newest_first NewestFirst caught by delivers_oldest_first;
        mixes_the_order_up NewestFirst caught by keeps_messages_across_reopen_in_order;
        retries_at_once RetryAtOnce caught by a_retry_waits_for_its_delay;
        forgets_errors NoErrors caught by spent_attempts_make_a_dead_letter_with_its_history;
        forgets_the_last_errors NoErrors caught by keeps_the_last_ten_errors;
        retries_the_rejected DeadRetries caught by a_rejected_message_is_dead_at_once;
        forgets_the_dying ForgetsTheDead caught by a_consumer_that_keeps_dying_makes_a_dead_letter;
        redrives_others RedrivesLess caught by redrives_and_drops_by_id;
        lists_the_first_page_only FirstPageOnly caught by lists_dead_letters_page_by_page;
        releases_the_acked AckReleases caught by an_acked_message_stays_gone_across_reopen;
        settles_a_receipt_twice AcceptsStale caught by one_receipt_settles_once;
        settles_the_stale_among_others AcceptsStale caught by one_stale_receipt_does_not_fail_the_batch;
        settles_after_a_reopen AcceptsStale caught by a_receipt_from_before_a_reopen_is_stale;
        settles_after_a_disconnect AcceptsStale caught by a_disconnect_voids_expired_leases;
        loses_one_of_many LosesLast caught by every_message_goes_to_one_of_many_consumers;
        does_not_wait NoWait caught by a_waiting_lease_is_woken_by_a_message;
        answers_early NoWait caught by a_waiting_lease_ends_empty_in_time;
        does_not_wait_for_the_end NoWait caught by closing_is_idempotent_and_ends_waiting_leases;
        clamps_what_is_out_of_range Clamps caught by a_lease_out_of_range_is_invalid;
        forgets_attempts FirstAttempt caught by a_leased_message_is_ready_after_reopen_with_its_attempt_counted;
        forgets_pause NoPause caught by keeps_delays_dead_letters_pause_and_counts_across_reopen;
        cuts_large_payloads Truncates caught by keeps_empty_binary_and_large_payloads;
        refuses_an_empty_batch RefusesNothing caught by an_empty_batch_is_a_no_op;
        refuses_a_batch_for_one AllOrNothing caught by a_refused_message_does_not_fail_the_batch;
        takes_any_batch SplitsBatches caught by a_batch_over_the_limit_is_invalid;
        peeks_too_many PeeksTooMany caught by peeks_without_taking;
        deletes_what_is_not_empty DeletesTheFull caught by delete_refuses_a_queue_in_use;
        keeps_what_was_deleted KeepsTheDeleted caught by a_deleted_queue_stays_gone_across_reopen;
        makes_what_it_is_asked_about MakesUnknown caught by an_unknown_queue_has_no_stats;
        keeps_the_first_record_only NoRecords caught by records_of_attempts_travel_with_the_dead_letter;
        keeps_every_record NoBounds caught by records_of_attempts_are_bounded;
        knows_one_age MixesAges caught by ready_leased_and_delayed_messages_have_ages_of_their_own;
        miscounts CountsNoRetries caught by stats_count_every_outcome;
        puts_everything_into_one_queue OneQueue caught by queues_do_not_mix;
        leases_after_cancellation Detached caught by a_cancelled_lease_call_leases_nothing;
        adds_moments_up AddsMoments caught by an_unbounded_wait_is_woken;
        hides_nothing GivesBack caught by hides_a_leased_message_from_others;
        refuses_the_late GivesBack caught by settles_an_expired_lease_that_was_not_reassigned;
    }
    routes: {
        swallows_the_unroutable SwallowsUnroutable caught by an_unroutable_message_is_an_error_and_stored_nowhere;
        keeps_what_is_unbound NoUnbind caught by bindings_stay_until_unbound;
        copies_twice PublishesTwice caught by copies_into_every_matching_queue_once;
        refuses_all_for_a_full_queue AllOrNothing caught by a_full_queue_refuses_its_message_alone;
        refuses_all_for_one AllOrNothing caught by a_refused_publication_does_not_fail_the_batch;
    }
    stream: {
        commits_up_to_the_newest CommitsTheNewest caught by a_finished_prefix_ends_at_the_first_unfinished_entry;
        claims_from_the_living ClaimsEarly caught by an_idle_pending_entry_can_be_claimed;
        trims_what_is_unread TrimsTheUnread caught by trims_below_the_slowest_group;
        forgets_dedup_ids NoDedup caught by recognises_a_repeated_entry;
        counts_no_attempts FirstAttempt caught by delivers_entries_in_order_and_once;
        resets_an_existing_group ResetsGroups caught by an_existing_group_keeps_its_position;
        keeps_entries_of_the_disconnected ForgetsTheGone caught by a_disconnected_consumers_entries_can_be_claimed_at_once;
        delivers_every_entry_to_every_consumer SharesNothing caught by consumers_of_a_group_share_the_entries;
        counts_what_is_held_as_done CountsWhatIsHeld caught by reports_lag_pending_and_age;
    }
    kv: {
        ignores_bounds NoBounds caught by a_counter_stays_within_its_bounds;
        commits_one_by_one OneByOne caught by several_ops_are_all_or_none;
        swaps_without_comparing NoCompare caught by compares_before_it_swaps;
        forgets_ttls NoTtl caught by keeps_keys_across_reopen;
        keeps_the_deleted NoDelete caught by puts_gets_and_deletes;
        makes_the_last_change_only LastOnly caught by ops_of_one_commit_see_each_other;
        puts_in_any_case PutsAnyway caught by one_of_many_puts_if_absent;
        mixes_fields_up UnsortedFields caught by fields_are_kept_apart_from_values;
        makes_the_last_field_only LastOnly caught by a_hash_changes_field_by_field_and_stays;
        keeps_keys_for_ever NoTtl caught by a_key_expires_after_its_ttl;
        lists_the_first_keys_only FirstPageOnly caught by lists_keys_by_prefix_page_by_page;
        ignores_bounds_of_any_size NoBounds caught by bounds_hold_for_numbers_of_any_size;
        keeps_the_ttl_of_the_deleted NoDelete caught by deleting_a_key_clears_its_ttl;
        hides_refusals HidesRefusals caught by a_sum_beyond_all_numbers_is_refused;
        drops_the_ttl_of_a_counter AddDropsTtl caught by an_add_keeps_the_ttl;
        ignores_expiries NoExpire caught by an_expiry_needs_a_key;
    }
    rate_limit: {
        admits_too_many Admits caught by many_takers_never_get_more_than_the_rule_allows;
        admits_too_many_over_time Admits caught by no_stretch_of_time_admits_more_than_capacity_and_refill;
        takes_one_by_one OneByOne caught by several_takes_are_all_or_none;
        names_too_short_a_time ShortTime caught by retry_after_is_exact;
        never_resets NoReset caught by a_peek_takes_nothing_and_a_reset_fills_up;
        answers_nothing AnswersNothing caught by an_impossible_amount_is_invalid;
        forgets_what_was_taken OwnKeys caught by a_limit_is_remembered_across_reopen;
    }
    effects: {
        applies_half Half caught by nothing_changes_when_a_receipt_is_stale;
        applies_half_of_what_does_not_fit Half caught by nothing_changes_when_a_queue_is_full;
        forgets_what_it_sends NoEnqueue caught by everything_happens_in_one_step;
        ignores_refusals IgnoresRefusals caught by nothing_changes_when_a_condition_does_not_hold;
        drops_the_unroutable DropsUnroutable caught by nothing_changes_when_a_publication_matches_no_route;
        applies_half_for_all Half caught by one_of_many_settles_a_receipt;
        forgets_dedup_ids NoDedup caught by a_repeated_dedup_id_is_skipped;
        sends_first SendsFirst caught by a_refusal_counts_no_duplicates;
        appends_first SendsFirst caught by a_position_moves_in_the_same_step_as_the_append;
        finishes_half Half caught by an_entry_is_finished_in_the_same_step_as_its_effect;
    }
    source_offsets: {
        returns_no_position TellsNone caught by an_append_moves_the_position;
        moves_from_anywhere MovesFromAnywhere caught by an_append_at_another_position_conflicts;
        moves_from_anywhere_in_a_race MovesFromAnywhere caught by one_of_many_appends_at_one_position_succeeds;
        forgets_positions OwnSources caught by positions_stay_across_reopen;
        mixes_sources_up OneSource caught by each_source_has_its_own_position;
        lists_all_sources ListsAll caught by sources_are_listed_by_prefix;
        forgets_what_moved_on ForgetsAnyway caught by a_position_is_forgotten_unless_it_moved;
        wants_entries WantsEntries caught by an_append_without_entries_creates_no_stream;
    }
}

/// The case that must detect it.
fn case_of(mutant: &Mutant) -> Option<Case> {
    areas()
        .into_iter()
        .filter(|(area, _)| *area == mutant.area)
        .flat_map(|(_, cases)| cases)
        .find(|case| case.name == mutant.caught_by)
}

/// Whether the row has the features of the case; a missing case is reported by its trial.
pub(crate) fn applies(mutant: &Mutant, subject: &Subject) -> bool {
    case_of(mutant).is_none_or(|case| case.lacks(subject).is_none())
}

/// Passes when the case fails on the mutant.
pub(crate) fn is_caught(mutant: &'static Mutant, subject: &'static Subject) -> Result<(), Failed> {
    let case = case_of(mutant).ok_or_else(|| format!("unknown case `{}`", mutant.caught_by))?;
    match run(case, World::wrapped(subject, mutant.wrap)) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!(
            "`{}` passes although the backend {}",
            case.name, mutant.name
        )
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{MUTANTS, areas};

    #[test]
    fn every_case_can_fail() {
        // Streams have mutants for some of their cases only.
        let areas = areas().into_iter().filter(|(area, _)| *area != "stream");
        for (area, cases) in areas {
            let mutants = MUTANTS.iter().filter(|mutant| mutant.area == area);
            let caught_by: Vec<&str> = mutants.map(|mutant| mutant.caught_by).collect();
            for case in cases {
                assert!(
                    caught_by.contains(&case.name),
                    "no mutant shows that `{area}::{}` can fail",
                    case.name
                );
            }
        }
    }
}
