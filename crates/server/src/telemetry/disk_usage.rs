//! Free space of the disks that the process writes to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::fs::statvfs;

use super::metric::Metric;
use super::registry::{add, set};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Folder {
    folder: String,
}

/// The folders that are written to.
#[derive(Clone, Default)]
pub(super) struct Disks {
    folders: Arc<Mutex<BTreeSet<PathBuf>>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A disk, by the first folder on it.
#[derive(Debug, Clone)]
pub struct DiskUsage {
    /// The folder.
    pub folder: PathBuf,
    /// Free bytes.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

impl Disks {
    pub(super) fn watch(&self, folder: &Path) {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        self.lock().insert(folder);
    }

    /// Looks at each disk once, however many folders are on it. A folder that is not there yet is left out.
    ///
    /// One check at a time: a check of a network file system whose server is unavailable does not end, and blocks one thread only.
    pub(super) async fn look(&self) -> Vec<DiskUsage> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let folders = self.lock().clone();
        let look = tokio::task::spawn_blocking(move || {
            let rooms = rooms(folders);
            drop(turn);
            rooms
        });
        look.await.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rooms(folders: BTreeSet<PathBuf>) -> Vec<DiskUsage> {
    let mut seen = BTreeSet::new();
    let rooms = folders.into_iter().filter_map(|folder| {
        let device = fs::metadata(&folder).ok()?.dev();
        if !seen.insert(device) {
            return None;
        }
        let disk = statvfs(&folder).ok()?;
        Some(DiskUsage {
            folder,
            // Space reserved for root is not free.
            free: disk.f_bavail * disk.f_frsize,
            size: disk.f_blocks * disk.f_frsize,
        })
    });
    rooms.collect()
}

/// Adds the result.
pub(super) fn register(registry: &mut Registry, rooms: &[DiskUsage]) {
    let (free, size) = (Family::<Folder, Gauge>::default(), Family::default());
    add(registry, Metric::DiskFree, free.clone());
    add(registry, Metric::DiskSize, size.clone());
    for room in rooms {
        let folder = room.folder.display().to_string();
        let labels = Folder { folder };
        for (family, bytes) in [(&free, room.free), (&size, room.size)] {
            set(family, &labels, bytes);
        }
    }
}
