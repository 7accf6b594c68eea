//! A command per message: the payload on its standard input.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};
use towpath_core::message::header::TRACEPARENT;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Delivery, Error, Message, Result};

use super::environment::passed;
use crate::pump::{Destination, Handler};
use crate::traces;

/// Prefix of the command's variables.
pub const VARIABLE_PREFIX: &str = "TOWPATH_MESSAGE_";

/// Says that the message itself is wrong. Source: sysexits.h, `EX_DATAERR`.
const DATA_ERROR: i32 = 65;

/// Stored end of standard error.
const ERROR_BYTES: usize = 4096;

/// Time between the request to end and the kill, of a command that took too long.
const GRACE: Duration = Duration::from_secs(2);

/// Time for which standard error is read after a failed command: a process in the background may hold it open for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Starts the program for each message.
///
/// The variables are `TOWPATH_MESSAGE_ID`, `_QUEUE`, `_ATTEMPT`, `_ENQUEUED_AT`, `_KEY` when it has one, and
/// `TOWPATH_MESSAGE_HEADER_…` for each header: `…_HEADER_CONTENT_TYPE`.
///
/// Exit 0 is done, 65 makes the message a dead letter, anything else tries again, with
/// the last line of standard error as the reason. A program that cannot be started is a condition of the program, and
/// no message is charged. Processes that a command leaves in the background
/// is not waited for. A command that takes too long, or that a stop cuts off, gets SIGTERM, and SIGKILL two to three
/// seconds later, with all its children. At least once: a crash between the
/// command's end and the ack runs it again, with the same message id.
#[derive(Debug)]
pub struct CommandSink {
    program: Vec<String>,
    timeout: Duration,
    /// The part of the environment that a command gets.
    environment: Vec<(OsString, OsString)>,
    destination: Destination,
    /// Running process groups; `None` once they got the signal to end.
    running: Mutex<Option<HashSet<Pid>>>,
}

impl CommandSink {
    /// A sink that runs `program` with its arguments, each for at most `timeout`. `destination` makes the program's state
    /// of its name.
    ///
    /// # Errors
    /// `Invalid` without a program.
    pub fn new(
        program: Vec<String>,
        timeout: Duration,
        destination: impl FnOnce(String) -> Destination,
    ) -> Result<Self> {
        let Some(name) = program.first().filter(|name| !name.is_empty()) else {
            return Err(Error::invalid("a command sink needs a program"));
        };
        Ok(Self {
            destination: destination(name.clone()),
            program,
            timeout,
            environment: passed(&[], std::env::vars_os()),
            running: Mutex::new(Some(HashSet::new())),
        })
    }

    /// Passes these variables of this process to the program, beside the common ones; `*` for all.
    #[must_use]
    pub fn passing(self, declared: &[String]) -> Self {
        let environment = passed(declared, std::env::vars_os());
        Self {
            environment,
            ..self
        }
    }

    /// The outcome of one message.
    async fn run(&self, delivery: &Delivery) -> Outcome {
        let variables = variables(delivery);
        if let Some((name, _)) = variables
            .iter()
            .find(|(_, value)| value.as_bytes().contains(&0))
        {
            let reason = format!("`{name}` would hold a NUL, which no variable can");
            return Outcome::Reject { reason };
        }
        let mut child = match self.start(variables) {
            Ok(child) => child,
            Err(error) => return self.not_started(&error),
        };
        let mut group = Group::of(&child, &self.running);
        let mut finished = Box::pin(finish(&mut child, &delivery.message));
        let outcome = match tokio::time::timeout(self.timeout, &mut finished).await {
            Ok(outcome) => outcome,
            Err(_) => {
                group.terminate();
                tokio::time::timeout(GRACE, finished).await.ok();
                // Killed by the guard, if it is still there.
                return retry(format!("not finished within {:?}", self.timeout));
            }
        };
        group.leader = None;
        if self.is_hurried() && !matches!(outcome, Outcome::Done) {
            return Outcome::Unavailable {
                cause: Cause::Deferred,
                after: Some(Duration::ZERO),
                error: "ended by the stop of the process".to_owned(),
            };
        }
        outcome
    }

    /// Whether running commands got the signal to end.
    fn is_hurried(&self) -> bool {
        lock(&self.running).is_none()
    }

    /// Variables that no program can be started with are the message's; everything else is the program's.
    fn not_started(&self, error: &io::Error) -> Outcome {
        let text = format!("`{}` cannot be started: {error}", self.program[0]);
        if error.kind() == io::ErrorKind::ArgumentListTooLong {
            let reason = format!("{text}; key and headers must fit into the environment");
            return Outcome::Reject { reason };
        }
        Outcome::Unavailable {
            cause: Cause::Unreachable,
            after: None,
            error: text,
        }
    }

    fn start(&self, variables: Vec<(String, String)>) -> io::Result<Child> {
        Command::new(&self.program[0])
            .args(&self.program[1..])
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own: a signal for us must not reach it, and it can be killed with its children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// The process group of a running command, killed when dropped: a delivery that is cut short leaves nothing running.
struct Group<'a> {
    leader: Option<Pid>,
    id: Option<Pid>,
    running: &'a Mutex<Option<HashSet<Pid>>>,
}

impl<'a> Group<'a> {
    fn of(leader: &Child, running: &'a Mutex<Option<HashSet<Pid>>>) -> Self {
        let id = leader.id().and_then(|id| i32::try_from(id).ok());
        let id = id.and_then(Pid::from_raw);
        if let (Some(running), Some(id)) = (&mut *lock(running), id) {
            running.insert(id);
        }
        Self {
            leader: id,
            id,
            running,
        }
    }

    fn terminate(&self) {
        if let Some(leader) = self.leader {
            // A process that has already ended is fine.
            kill_process_group(leader, Signal::TERM).ok();
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if let (Some(running), Some(id)) = (&mut *lock(self.running), self.id) {
            running.remove(&id);
        }
        if let Some(leader) = self.leader {
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn variables(delivery: &Delivery) -> Vec<(String, String)> {
    let message = &delivery.message;
    let mut variables = vec![
        ("ID".to_owned(), message.id.to_string()),
        ("QUEUE".to_owned(), delivery.receipt.queue.to_string()),
        ("ATTEMPT".to_owned(), delivery.attempt.to_string()),
        ("ENQUEUED_AT".to_owned(), message.enqueued_at.to_string()),
    ];
    if let Some(key) = &message.key {
        variables.push(("KEY".to_owned(), key.clone()));
    }
    // Where this delivery is in its trace, and not where the message was put into the queue.
    let position = traces::traceparent();
    for (name, value) in message.headers.iter() {
        let value = match &position {
            Some(position) if name.eq_ignore_ascii_case(TRACEPARENT) => position.as_str(),
            _ => value,
        };
        let name = name.replace(|character: char| !character.is_ascii_alphanumeric(), "_");
        variables.push((
            format!("HEADER_{}", name.to_ascii_uppercase()),
            value.to_owned(),
        ));
    }
    for (name, _) in &mut variables {
        name.insert_str(0, VARIABLE_PREFIX);
    }
    variables
}

/// Feeds the command, listens to its standard error, and waits for its end.
async fn finish(child: &mut Child, message: &Message) -> Outcome {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let mut output = Vec::new();
    let status = {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command may end without reading everything.
                stdin.write_all(&message.payload).await.ok();
            }
        };
        let talk = async { tokio::join!(feed, listen(stderr, &mut output)) };
        let mut talk = std::pin::pin!(talk);
        let mut talking = true;
        let status = loop {
            tokio::select! {
                _ = &mut talk, if talking => talking = false,
                status = child.wait() => break status,
            }
        };
        if talking && !status.as_ref().is_ok_and(ExitStatus::success) {
            // Whatever it was, it is said already or will not be.
            tokio::time::timeout(LAST_WORDS, talk).await.ok();
        }
        status
    };
    let output = String::from_utf8_lossy(&output);
    let last = output
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .trim();
    match status {
        Ok(status) if status.success() => Outcome::Done,
        Ok(status) => {
            let error = if last.is_empty() {
                status.to_string()
            } else {
                format!("{status}: {last}")
            };
            if status.code() == Some(DATA_ERROR) {
                Outcome::Reject { reason: error }
            } else {
                retry(error)
            }
        }
        Err(error) => retry(error.to_string()),
    }
}

/// Keeps the end of standard error.
async fn listen(stderr: Option<ChildStderr>, output: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        output.extend_from_slice(&buffer[..count]);
        let excess = output.len().saturating_sub(ERROR_BYTES);
        output.drain(..excess);
    }
}

const fn retry(error: String) -> Outcome {
    Outcome::Retry { after: None, error }
}

#[async_trait]
impl Handler for CommandSink {
    async fn handle(&self, delivery: &Delivery) -> Outcome {
        self.run(delivery).await
    }

    fn destination(&self) -> Option<&Destination> {
        Some(&self.destination)
    }

    fn hurry(&self) {
        for leader in lock(&self.running).take().into_iter().flatten() {
            kill_process_group(leader, Signal::TERM).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    use super::*;
    use crate::sink::testing::{delivery, destination};

    fn shell(script: &str, timeout: Duration) -> CommandSink {
        let program = ["sh", "-c", script].map(String::from).to_vec();
        CommandSink::new(program, timeout, destination).unwrap()
    }

    async fn outcome(script: &str, timeout: Duration) -> Outcome {
        shell(script, timeout).handle(&delivery("x")).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_exit_code_is_the_outcome_of_the_message() {
        assert_eq!(outcome("cat > /dev/null", LONG).await, Outcome::Done);
        assert_eq!(
            outcome("echo first >&2; echo wrong >&2; echo >&2; exit 65", LONG).await,
            Outcome::Reject {
                reason: "exit status: 65: wrong".to_owned()
            }
        );
        assert_eq!(
            outcome("exit 3", LONG).await,
            retry("exit status: 3".to_owned())
        );
        let Outcome::Retry { error, .. } = outcome("kill -9 $$", LONG).await else {
            panic!("a killed command is tried again")
        };
        assert!(error.contains("signal: 9"), "{error}");
    }

    #[tokio::test]
    async fn processes_left_in_the_background_are_not_waited_for() {
        let began = Instant::now();
        assert_eq!(outcome("sleep 30 & exit 0", LONG).await, Outcome::Done);
        assert_eq!(
            outcome("echo late >&2; sleep 30 & exit 3", LONG).await,
            retry("exit status: 3: late".to_owned())
        );
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn the_command_gets_headers_and_facts_beside_the_payload() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let mut delivery = delivery("the payload");
        delivery.attempt = 3;
        delivery.message.key = Some("customer 7".to_owned());
        delivery.message.headers.set("content-type", "text/plain");
        delivery.message.headers.set("x.odd--name", "a=b");
        let script = format!(
            "(env | grep ^TOWPATH_MESSAGE_ | sort; cat) > {}",
            seen.display()
        );
        shell(&script, LONG).handle(&delivery).await;
        let expected = [
            "ATTEMPT=3",
            "ENQUEUED_AT=1970-01-01T00:00:00.000Z",
            "HEADER_CONTENT_TYPE=text/plain",
            "HEADER_X_ODD__NAME=a=b",
            &format!("ID={}", delivery.message.id),
            "KEY=customer 7",
            "QUEUE=q",
        ]
        .map(|variable| format!("TOWPATH_MESSAGE_{variable}\n"))
        .concat();
        assert_eq!(fs::read_to_string(seen).unwrap(), expected + "the payload");

        delivery.message.headers.set("x-nul", "a\0b");
        assert_eq!(
            shell("true", LONG).handle(&delivery).await,
            Outcome::Reject {
                reason: "`TOWPATH_MESSAGE_HEADER_X_NUL` would hold a NUL, which no variable can"
                    .to_owned()
            }
        );
    }

    #[tokio::test]
    async fn a_program_that_cannot_start_is_a_condition_of_the_program() {
        let program = vec!["/nowhere/at/all".to_owned()];
        let sink = CommandSink::new(program, LONG, destination).unwrap();
        let outcome = sink.handle(&delivery("x")).await;
        let Outcome::Unavailable { cause, error, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(cause, Cause::Unreachable);
        assert!(
            error.starts_with("`/nowhere/at/all` cannot be started: "),
            "{error}"
        );
        assert!(CommandSink::new(Vec::new(), LONG, destination).is_err());
    }

    #[tokio::test]
    async fn a_message_that_no_program_can_be_started_with_is_a_dead_letter() {
        // Too large for any environment.
        let mut heavy = delivery("heavy");
        heavy.message.headers.set("x", "x".repeat(1 << 20));
        let outcome = shell("true", LONG).handle(&heavy).await;
        let Outcome::Reject { reason } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(reason.starts_with("`sh` cannot be started: "), "{reason}");
    }

    async fn is_gone(pid_file: &Path) -> bool {
        let pid = fs::read_to_string(pid_file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        for _ in 0..500 {
            // A zombie that no parent reaps is dead as well.
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 300 & echo $! > {}; wait", pid.display());
        assert_eq!(
            outcome(&script, Duration::from_secs(1)).await,
            retry("not finished within 1s".to_owned())
        );
        assert!(is_gone(&pid).await);
    }

    #[tokio::test]
    async fn one_that_takes_too_long_may_end_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let script = format!(
            "trap 'echo ended > {}; exit' TERM; sleep 300 & wait",
            said.display()
        );
        outcome(&script, Duration::from_millis(500)).await;
        assert_eq!(fs::read_to_string(said).unwrap(), "ended\n");
    }

    #[tokio::test]
    async fn a_command_that_the_stop_ends_is_not_charged() {
        let folder = tempfile::tempdir().unwrap();
        let began = folder.path().join("began");
        let script = format!("touch {}; sleep 300 & wait", began.display());
        let (sink, message) = (shell(&script, LONG), delivery("x"));
        let hurry = async {
            while !began.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sink.hurry();
        };
        let (outcome, ()) = tokio::join!(sink.handle(&message), hurry);
        assert!(
            matches!(outcome, Outcome::Unavailable { .. }),
            "{outcome:?}"
        );
    }

    #[tokio::test]
    async fn a_delivery_that_is_cut_short_leaves_nothing_running() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 300 & echo $! > {}; wait", pid.display());
        let (sink, message) = (shell(&script, LONG), delivery("x"));
        let mut delivering = sink.handle(&message);
        while fs::read_to_string(&pid).unwrap_or_default().is_empty() {
            let moment = Duration::from_millis(10);
            assert!(tokio::time::timeout(moment, &mut delivering).await.is_err());
        }
        drop(delivering);
        assert!(is_gone(&pid).await);
    }
}
