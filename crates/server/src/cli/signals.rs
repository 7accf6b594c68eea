//! SIGINT and SIGTERM: the first begins the drain, the second cuts it short.
//!
//! They are received by a thread of their own: a disk that hangs may stop every other one.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use towpath_core::{Error, Result};

use super::Exit;
use crate::last_resort::end_after;

/// Timeout of the shutdown after the second signal.
const HURRIED: Duration = Duration::from_secs(2);

/// The log line of a process that did not end in order.
const OVERDUE: &str = "drain timeout exceeded; exiting without closing the stores";

/// The signals, caught from the start.
pub(super) struct Signals {
    first: oneshot::Receiver<String>,
    second: oneshot::Receiver<()>,
}

impl Signals {
    /// Catches them. The process ends within `drain` of the first one, in order or not.
    pub(super) fn install(drain: Duration) -> Result<Self> {
        let failed = |error| Error::unavailable("signals cannot be caught").with_source(error);
        let ((one, first), (two, second)) = (oneshot::channel(), oneshot::channel());
        let (installed, answer) = mpsc::sync_channel(1);
        let catch = move || {
            let runtime = Builder::new_current_thread().enable_io().build();
            match runtime {
                Ok(runtime) => runtime.block_on(receive(drain, one, two, &installed)),
                Err(error) => installed.send(Err(error)).unwrap_or(()),
            }
        };
        let builder = thread::Builder::new().name("towpath-signals".to_owned());
        builder.spawn(catch).map_err(failed)?;
        match answer.recv() {
            Ok(Ok(())) => Ok(Self { first, second }),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Error::unavailable("signals cannot be caught")),
        }
    }

    /// The signal that starts the drain, and the one that cuts it short.
    pub(super) fn first_and_second(
        self,
    ) -> (impl Future<Output = String>, impl Future<Output = ()>) {
        let Self { first, second } = self;
        let first = async move {
            match first.await {
                Ok(reason) => reason,
                Err(_) => std::future::pending().await,
            }
        };
        let second = async move {
            if second.await.is_err() {
                std::future::pending().await
            }
        };
        (first, second)
    }
}

async fn receive(
    drain: Duration,
    first: oneshot::Sender<String>,
    second: oneshot::Sender<()>,
    installed: &mpsc::SyncSender<std::io::Result<()>>,
) {
    let caught = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    let (mut interrupt, mut terminate) = match caught {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => {
            installed.send(Err(error)).ok();
            return;
        }
    };
    installed.send(Ok(())).ok();
    let mut next = async || {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT".to_owned(),
            _ = terminate.recv() => "SIGTERM".to_owned(),
        }
    };
    let reason = next().await;
    end_after(drain, Exit::Cut as u8, OVERDUE);
    // The process may be on its way out already.
    first.send(reason).ok();
    next().await;
    end_after(HURRIED.min(drain), Exit::Cut as u8, OVERDUE);
    second.send(()).ok();
    std::future::pending().await
}
