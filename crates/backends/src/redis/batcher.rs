//! Callers that come while a script is on its way share the next one.
//!
//! A script has a fixed cost, and with `appendfsync always` a sync of its own;
//! 64 callers with one message each would pay both 64 times.
//!
//! ```text
//! idle --first caller--> on its way (others wait) --answer--> those who waited go together --> ... --nobody--> idle
//! ```

use std::sync::{Arc, Mutex};

use redis::Value;
use tokio::sync::oneshot;
use towpath_core::{Error, NewMessage, Result};

use super::queue::{STEP, add_message, step_of};
use super::reply;
use super::script;
use super::servers::Servers;
use super::store::{Known, lock};

/// Messages of callers on their way into one queue. Each caller waits for its own, so there are as many as callers.
#[derive(Default)]
pub(super) struct Gather(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: Vec<Caller>,
    on_its_way: bool,
}

struct Caller {
    messages: Vec<NewMessage>,
    answer: oneshot::Sender<Result<Vec<Value>>>,
}

impl Gather {
    /// Puts the caller with those who go next; true when it has to send them off.
    fn join(&self, caller: Caller) -> bool {
        let mut state = lock(&self.0);
        state.waiting.push(caller);
        !std::mem::replace(&mut state.on_its_way, true)
    }

    /// Those who go together now; nobody ends the sending.
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
        // What one caller brings is a step of its own at most.
        let count = fitting.count().max(1).min(state.waiting.len());
        state.on_its_way = count > 0;
        state.waiting.drain(..count).collect()
    }
}

/// Payload bytes after which nobody else joins.
const GROUP_BYTES: usize = 1 << 20;

/// Stores the messages of one caller, which are one step. One answer of the script each.
///
/// A dropped call may have stored them.
pub(super) async fn take_in(
    servers: &Arc<Servers>,
    known: &Arc<Known>,
    messages: Vec<NewMessage>,
) -> Result<Vec<Value>> {
    debug_assert_eq!(step_of(&messages), messages.len());
    let (answer, mine) = oneshot::channel();
    if known.gather.join(Caller { messages, answer }) {
        let (servers, known) = (Arc::clone(servers), Arc::clone(known));
        // Ends when nobody waits. A task, because the caller that began it may be dropped while others wait.
        tokio::spawn(async move { send_off(&servers, &known).await });
    }
    mine.await
        .map_err(|_| Error::unavailable("the sending of a step ended early"))?
}

async fn send_off(servers: &Servers, known: &Known) {
    loop {
        let callers = known.gather.next();
        if callers.is_empty() {
            return;
        }
        match send(servers, known, &callers).await {
            Ok(values) => {
                let mut values = values.into_iter();
                for caller in callers {
                    let own = values.by_ref().take(caller.messages.len()).collect();
                    // Nobody is left to hear it when the call was dropped.
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
        // Lets those who were answered come back with their next message before the others go.
        tokio::task::yield_now().await;
    }
}

async fn send(servers: &Servers, known: &Known, callers: &[Caller]) -> Result<Vec<Value>> {
    let mut call = known.call(&script::ENQUEUE);
    let messages = callers.iter().flat_map(|caller| &caller.messages);
    for message in messages.clone() {
        add_message(&mut call, message)?;
    }
    let values = reply::list(servers.run(call).await?)?;
    match values.len() == messages.count() {
        true => Ok(values),
        false => Err(Error::corrupt(
            "redis answered for other messages than were sent",
        )),
    }
}

/// The error once more, for another caller.
fn same(error: &Arc<Error>) -> Error {
    let text = "the step that several callers shared failed";
    let copy = match error.retry_after() {
        Some(retry_after) => Error::overloaded(text, retry_after),
        None => Error::new(error.kind(), text),
    };
    copy.with_source(Arc::clone(error))
}
