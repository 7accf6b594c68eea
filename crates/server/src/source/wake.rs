//! Says when something in a folder changed, where the system reports it. Only a wake-up: the state is read from the files.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tracing::debug;

/// Watched folders, all by one descriptor; silent where they cannot be watched, as on most network file systems.
pub struct Wake {
    watcher: Option<AsyncFd<OwnedFd>>,
    watched: BTreeMap<PathBuf, i32>,
}

impl Default for Wake {
    fn default() -> Self {
        Self::new()
    }
}

impl Wake {
    /// Watches nothing yet.
    pub fn new() -> Self {
        let watcher = Self::watcher();
        let watcher = watcher.inspect_err(|error| debug!(%error, "folders not watched"));
        Self {
            watcher: watcher.ok(),
            watched: BTreeMap::new(),
        }
    }

    fn watcher() -> std::io::Result<AsyncFd<OwnedFd>> {
        let watcher = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "the descriptor belongs to it alone, and the successor needs unsafe code"
        )]
        AsyncFd::new(watcher)
    }

    /// Watches exactly these folders from now on.
    pub fn watch(&mut self, folders: &BTreeSet<PathBuf>) {
        let Some(watcher) = &self.watcher else {
            return;
        };
        self.watched.retain(|folder, watch| {
            let stays = folders.contains(folder);
            if !stays {
                inotify::remove_watch(watcher.get_ref(), *watch).ok();
            }
            stays
        });
        let what = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE;
        for folder in folders {
            if self.watched.contains_key(folder) {
                continue;
            }
            match inotify::add_watch(watcher.get_ref(), folder, what) {
                Ok(watch) => {
                    self.watched.insert(folder.clone(), watch);
                }
                Err(error) => debug!(%error, folder = %folder.display(), "folder not watched"),
            }
        }
    }

    /// Resolves when something changed since the last call; never where nothing is reported.
    pub async fn changed(&mut self) {
        let Some(watcher) = &self.watcher else {
            return std::future::pending().await;
        };
        let Ok(mut ready) = watcher.readable().await else {
            return std::future::pending().await;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(watcher.get_ref(), &mut buffer);
        while let Ok(event) = events.next() {
            // The folder is gone: one that is made in its place is watched again.
            if event.events().contains(ReadFlags::IGNORED) {
                let gone = event.wd();
                self.watched.retain(|_, watch| *watch != gone);
            }
        }
        ready.clear_ready();
    }
}
