//! How long the current request waits for a store.
//!
//! A request has a client that times out; a loop of the process has not: it waits until the outcome is known, because
//! repeating a step whose outcome is unknown would do it twice. So the limit belongs to the request, and the edge sets it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

thread_local! {
    static LIMIT: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Puts the limit of the surrounding work back, also after a panic.
struct Restore(Option<Duration>);

impl Drop for Restore {
    fn drop(&mut self) {
        LIMIT.set(self.0);
    }
}

/// Does `work`, each of whose waits for a store lasts at most `limit`. Tasks that it spawns have no limit.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let _restore = Restore(LIMIT.replace(Some(limit)));
        work.as_mut().poll(context)
    })
    .await
}

/// The limit of the current request; `None` outside of one.
pub fn limit() -> Option<Duration> {
    LIMIT.get()
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn limit_holds_inside_of_the_work_only() {
        let second = Duration::from_secs(1);
        let mut yielded = false;
        let mut work = pin!(within(second, async {
            assert_eq!(limit(), Some(second));
            poll_fn(|_| match std::mem::replace(&mut yielded, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            limit()
        }));
        let mut context = Context::from_waker(Waker::noop());
        assert!(work.as_mut().poll(&mut context).is_pending());
        assert_eq!(limit(), None);
        assert_eq!(work.as_mut().poll(&mut context), Poll::Ready(Some(second)));
        assert_eq!(limit(), None);
    }
}
