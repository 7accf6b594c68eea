//! Wake-ups between callers on a runtime and the committer thread: one per group and direction.
//!
//! Waking a thread costs more than the record it is about. Two things keep that
//! cost per group instead of per caller:
//!
//! - The first record of a group calls the committer only after the runtime has
//!   run whatever else was ready, so that those records join the group.
//! - The committer wakes one task, and that task wakes the callers of the group
//!   on the runtime itself.
//!
//! ```text
//! append -> call (deferred by one turn of the runtime) -> committer
//! callers <- [many wake-ups on the runtime] <- task <- one wake-up <- committer
//! ```

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::yield_now;

/// Calls the committer.
type Call = Box<dyn Fn() + Send + Sync>;

/// Work of the task.
#[derive(Default)]
struct Due {
    /// Callers whose records are committed.
    callers: Vec<Waker>,
    /// The committer is to be called.
    call: bool,
    /// The task itself, once it waits.
    task: Option<Waker>,
    /// The log has ended.
    closed: bool,
}

/// Wake-ups in both directions; without a task on a runtime each is given at once.
pub(super) struct Wakeups {
    due: Mutex<Due>,
    /// There is a task.
    runs: AtomicBool,
    call: Call,
}

impl Wakeups {
    /// - `call`: wakes the committer.
    pub(super) fn new(call: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            due: Mutex::default(),
            runs: AtomicBool::new(false),
            call: Box::new(call),
        })
    }

    /// Starts the task on the current runtime, unless there is one. A runtime of one thread runs tasks only while
    /// something blocks on it, so none is started there.
    pub(super) fn start(self: &Arc<Self>) {
        if self.runs.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread
            || self.lock().closed
            || self.runs.swap(true, Ordering::Relaxed)
        {
            return;
        }
        // It ends with the log or with its runtime, and then wakes the due callers at once.
        runtime.spawn(Task {
            wakeups: Arc::clone(self),
            deferred: false,
        });
    }

    /// Calls the committer after the other ready tasks of the runtime.
    pub(super) fn call(&self) {
        if !self.runs.load(Ordering::Relaxed) {
            return (self.call)();
        }
        let task = {
            let mut due = self.lock();
            due.call = true;
            due.task.take()
        };
        self.hand_over(task);
    }

    /// Wakes the callers of a group.
    pub(super) fn wake(&self, callers: Vec<Waker>) {
        if callers.len() < 2 || !self.runs.load(Ordering::Relaxed) {
            return callers.into_iter().for_each(Waker::wake);
        }
        let task = {
            let mut due = self.lock();
            match due.callers.is_empty() {
                true => due.callers = callers,
                false => due.callers.extend(callers),
            }
            due.task.take()
        };
        self.hand_over(task);
    }

    /// Ends the task.
    pub(super) fn close(&self) {
        let task = {
            let mut due = self.lock();
            due.closed = true;
            due.task.take()
        };
        self.hand_over(task);
    }

    fn hand_over(&self, task: Option<Waker>) {
        if let Some(task) = task {
            task.wake();
        } else if !self.runs.load(Ordering::Acquire) {
            // It ended meanwhile.
            self.give();
        }
    }

    /// Wakes the due callers from this thread.
    fn give(&self) {
        let (callers, call) = {
            let mut due = self.lock();
            (
                std::mem::take(&mut due.callers),
                std::mem::take(&mut due.call),
            )
        };
        if call {
            (self.call)();
        }
        callers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the due callers on a runtime.
struct Task {
    wakeups: Arc<Wakeups>,
    /// The call waits for its turn.
    deferred: bool,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let wakeups = Arc::clone(&self.wakeups);
        let (callers, call) = {
            let mut due = wakeups.lock();
            if due.closed {
                return Poll::Ready(());
            }
            due.task = Some(context.waker().clone());
            // Woken early by a group, it calls early: that costs nothing but company.
            let call = due.call && self.deferred;
            self.deferred = due.call && !call;
            due.call &= !call;
            (std::mem::take(&mut due.callers), call)
        };
        if call {
            (wakeups.call)();
        }
        callers.into_iter().for_each(Waker::wake);
        if self.deferred {
            // Only its waker counts, which the runtime keeps until nothing else is ready.
            let turn = pin!(yield_now());
            return turn.poll(context);
        }
        Poll::Pending
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        {
            let mut due = self.wakeups.lock();
            due.task = None;
            self.wakeups.runs.store(false, Ordering::Release);
        }
        self.wakeups.give();
    }
}
