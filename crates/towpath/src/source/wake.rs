//! Says when something in a folder changed, where the system tells. Only a wake-up: what is true is read from the files.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use crate::disk::folder_of;

/// A watched folder; silent where it cannot be watched, as on most network file systems.
pub struct Wake(Option<AsyncFd<OwnedFd>>);

impl Wake {
    /// Watches the folder of a file.
    pub fn beside(path: &Path) -> Self {
        let watched = Self::watch(folder_of(path));
        Self(
            watched
                .inspect_err(|error| debug!(%error, "the folder is not watched"))
                .ok(),
        )
    }

    fn watch(folder: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
        let watcher = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let what = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE;
        inotify::add_watch(&watcher, folder, what)?;
        #[expect(
            deprecated,
            reason = "the descriptor belongs to it alone, and the successor needs unsafe code"
        )]
        AsyncFd::new(watcher)
    }

    /// Resolves when something changed since the last call; never where nothing is told.
    pub async fn changed(&self) {
        let Some(watcher) = &self.0 else {
            return std::future::pending().await;
        };
        let Ok(mut ready) = watcher.readable().await else {
            return std::future::pending().await;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(watcher.get_ref(), &mut buffer);
        while events.next().is_ok() {}
        ready.clear_ready();
    }
}
