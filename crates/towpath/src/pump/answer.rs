//! The receiver's answer to a delivery, for the record of its attempt.
//!
//! A handler notes it in passing: the answer may repeat the payload, so it travels beside the outcome, which goes to logs
//! and traces.

use std::cell::RefCell;

use towpath_core::attempt::ANSWER_BYTES;

tokio::task_local! {
    static ANSWER: RefCell<Option<String>>;
}

/// Notes the beginning of an answer; the last one counts. Outside of a delivery it is dropped.
pub fn note(answer: &[u8]) {
    let shown = &answer[..answer.len().min(ANSWER_BYTES)];
    let mut text = String::from_utf8_lossy(shown).into_owned();
    text.truncate(text.floor_char_boundary(ANSWER_BYTES));
    _ = ANSWER.try_with(|kept| kept.replace(Some(text)));
}

/// The result of the work, and the answer that was recorded meanwhile.
pub(super) async fn noted<T>(work: impl Future<Output = T>) -> (T, Option<String>) {
    let work = async {
        let ended = work.await;
        (ended, ANSWER.with(RefCell::take))
    };
    ANSWER.scope(RefCell::default(), work).await
}
