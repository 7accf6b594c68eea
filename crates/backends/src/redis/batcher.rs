//! Batches enqueues: callers that arrive while a script is in flight share the next one.
//!
//! A script has a fixed cost, and with `appendfsync always` a sync of its own;
//! 64 callers with one message each would pay both 64 times.
//!
//! ```text
//! idle --first caller--> in flight (others wait) --answer--> waiting callers in one batch --> ... --none--> idle
//! ```

use std::sync::{Arc, Mutex};

use redis::Value;
use tokio::sync::oneshot;
use towpath_core::{Error, NewMessage, Result};

use super::queue::{STEP, add_message, step_of};
use super::reply;
use super::script;
use super::servers::Servers;
use super::store::{ResourceHandle, lock};

/// Waiting enqueue calls of one queue. Each caller waits for its answer, so callers bound their number.
#[derive(Default)]
pub(super) struct EnqueueBatcher(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: Vec<Caller>,
    in_flight: bool,
}

struct Caller {
    messages: Vec<NewMessage>,
    answer: oneshot::Sender<Result<Vec<Value>>>,
}

impl EnqueueBatcher {
    /// Adds a caller to the next batch; true when the caller has to start the sending.
    fn join(&self, caller: Caller) -> bool {
        let mut state = lock(&self.0);
        state.waiting.push(caller);
        !std::mem::replace(&mut state.in_flight, true)
    }

    /// The next batch; an empty one ends the sending.
    fn next(&self) -> Vec<Caller> {
        let mut state = lock(&self.0);
        let mut messages = 0;
        let mut bytes = 0;
        let fitting = state.waiting.iter().take_while(|caller| {
            messages += caller.messages.len();
            let of_caller = caller.messages.iter().map(|message| message.payload.len());
            bytes += of_caller.sum::<usize>();
            messages <= STEP && bytes <= GROUP_BYTES
        });
        // One caller brings at most one step.
        let count = fitting.count().max(1).min(state.waiting.len());
        state.in_flight = count > 0;
        state.waiting.drain(..count).collect()
    }
}

/// Payload bytes after which a batch is closed.
const GROUP_BYTES: usize = 1 << 20;

/// Stores the messages of one caller, which are one step. One answer of the script each.
///
/// A dropped call may have stored them.
pub(super) async fn enqueue_batched(
    servers: &Arc<Servers>,
    handle: &Arc<ResourceHandle>,
    messages: Vec<NewMessage>,
) -> Result<Vec<Value>> {
    debug_assert_eq!(step_of(&messages), messages.len());
    let (answer, mine) = oneshot::channel();
    if handle.batcher.join(Caller { messages, answer }) {
        let (servers, handle) = (Arc::clone(servers), Arc::clone(handle));
        // Ends when no caller waits. A task, because the caller that started it may be dropped while others wait.
        tokio::spawn(async move { send_batches(&servers, &handle).await });
    }
    mine.await
        .map_err(|_| Error::unavailable("the batch was not sent"))?
}

async fn send_batches(servers: &Servers, handle: &ResourceHandle) {
    loop {
        let callers = handle.batcher.next();
        if callers.is_empty() {
            return;
        }
        match send(servers, handle, &callers).await {
            Ok(values) => {
                let mut values = values.into_iter();
                for caller in callers {
                    let own = values.by_ref().take(caller.messages.len()).collect();
                    // Fails when the call was dropped.
                    drop(caller.answer.send(Ok(own)));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for caller in callers {
                    drop(caller.answer.send(Err(same(&error))));
                }
            }
        }
        // Lets answered callers join with their next message before the next batch.
        tokio::task::yield_now().await;
    }
}

async fn send(
    servers: &Servers,
    handle: &ResourceHandle,
    callers: &[Caller],
) -> Result<Vec<Value>> {
    let mut call = handle.call(&script::ENQUEUE);
    let messages = callers.iter().flat_map(|caller| &caller.messages);
    for message in messages.clone() {
        add_message(&mut call, message)?;
    }
    let values = reply::list(servers.run(call).await?)?;
    match values.len() == messages.count() {
        true => Ok(values),
        false => Err(Error::corrupt(
            "redis answered another number of messages than sent",
        )),
    }
}

/// A copy of the error for another caller.
fn same(error: &Arc<Error>) -> Error {
    let text = "the shared batch failed";
    let copy = match error.retry_after() {
        Some(retry_after) => Error::overloaded(text, retry_after),
        None => Error::new(error.kind(), text),
    };
    copy.with_source(Arc::clone(error))
}
