//! Available and used memory: above a bound new messages are rejected.
//!
//! Memory counts that the kernel cannot reclaim from a process, and so not the cache of its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use towpath_core::{Error, Result, units};

use super::config::byte_size;

/// Time for which a reading is used: within it the largest measured intake adds 10 MB.
const LOOK: Duration = Duration::from_millis(50);

/// When a refused producer may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Memory that writes may fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// Of the limit of the control group, or else of the machine's memory.
    Percent(u64),
    /// This many bytes, whatever the limits.
    Bytes(u64),
    /// All, until the kernel ends the process.
    Unbounded,
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "unbounded" {
            return Ok(Self::Unbounded);
        }
        let Some(percent) = text.strip_suffix('%') else {
            return byte_size("memory", text).map(Self::Bytes);
        };
        let percent = percent.parse().ok();
        let percent = percent.filter(|percent| (1..=95).contains(percent));
        percent.map(Self::Percent).ok_or_else(|| {
            Error::invalid(format!(
                "`memory={text}` is out of range; it must be 1% to 95%, a size, or `unbounded`"
            ))
        })
    }
}

/// The memory that a process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    bytes: u64,
    /// Usage, if the limit is of a control group: its statistics file and the names in it.
    statistics: Option<(PathBuf, &'static [&'static str])>,
}

/// Unreclaimable memory in the statistics of control groups of version 1 and version 2.
const USED_1: &[&str] = &["total_rss", "total_shmem"];
const USED_2: &[&str] = &[
    "anon",
    "shmem",
    "kernel_stack",
    "pagetables",
    "sock",
    "slab_unreclaimable",
];

/// Looks at the memory, at most once in [`LOOK`].
pub(super) struct Memory {
    limit: Limit,
    /// Above this new writes are rejected.
    bound: Option<u64>,
    used: AtomicU64,
    low: AtomicBool,
    looked: Mutex<Option<Instant>>,
}

impl Memory {
    pub(super) fn new(share: Share) -> Self {
        let limit = Limit::find(Path::new("/"));
        let bound = match share {
            Share::Unbounded => None,
            Share::Bytes(bytes) => Some(bytes),
            Share::Percent(percent) => Some(limit.bytes / 100 * percent),
        };
        Self {
            limit,
            bound,
            used: AtomicU64::new(0),
            low: AtomicBool::new(false),
            looked: Mutex::new(None),
        }
    }

    /// # Errors
    /// Overloaded while more than the bound is used.
    pub(super) fn check(&self) -> Result<()> {
        let Some(bound) = self.bound else {
            return Ok(());
        };
        if !self.is_low() {
            return Ok(());
        }
        let used = self.used.load(Ordering::Relaxed);
        Err(Error::overloaded(
            format!(
                "memory is low; new writes are rejected: {} MiB of {} MiB are used; drain queues, or raise the memory limit",
                used >> 20,
                bound >> 20
            ),
            RETRY_AFTER,
        ))
    }

    /// Whether more than the bound is used, and until it is a sixteenth less.
    pub(super) fn is_low(&self) -> bool {
        if let Some(bound) = self.bound
            && self.look_is_due()
        {
            let used = self.limit.used();
            self.used.store(used, Ordering::Relaxed);
            let was_low = self.low.load(Ordering::Relaxed);
            let low = used > if was_low { bound - bound / 16 } else { bound };
            if self.low.swap(low, Ordering::Relaxed) != low {
                match low {
                    true => tracing::warn!(used, bound, "memory is low; intake refused"),
                    false => tracing::info!(used, bound, "memory is free again; intake resumed"),
                }
            }
        }
        self.low.load(Ordering::Relaxed)
    }

    fn look_is_due(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = looked.is_none_or(|at| at.elapsed() >= LOOK);
        if due {
            *looked = Some(Instant::now());
        }
        due
    }

    /// Memory that this process or its control group uses.
    pub(super) fn used_bytes(&self) -> u64 {
        self.limit.used()
    }

    /// For the facts of the store.
    pub(super) fn describe(&self) -> String {
        let [used, limit] = [self.limit.used(), self.limit.bytes].map(units::bytes);
        match self.bound.map(units::bytes) {
            Some(bound) => format!("{used} used, new messages rejected above {bound} of {limit}"),
            None => format!("{used} used of {limit}, unbounded"),
        }
    }
}

impl Limit {
    /// The tightest of those that hold for this process, below a root folder.
    fn find(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let total = value_of(&read("proc/meminfo"), "MemTotal:").map_or(u64::MAX, |kib| kib << 10);
        let mut tightest = Self {
            bytes: total,
            statistics: None,
        };
        for line in read("proc/self/cgroup").lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
                continue;
            };
            let group = Path::new(group.trim_start_matches('/'));
            if controllers.is_empty() {
                for mount in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
                    tightest.take_version_2(&root.join(mount), group);
                }
            } else if controllers.split(',').any(|name| name == "memory") {
                tightest.take_version_1(&root.join("sys/fs/cgroup/memory"), group);
            }
        }
        tightest
    }

    /// Each group bounds those below it.
    fn take_version_2(&mut self, mount: &Path, group: &Path) {
        for group in group.ancestors() {
            let folder = mount.join(group);
            let limit = fs::read_to_string(folder.join("memory.max")).ok();
            let limit = limit.and_then(|limit| limit.trim().parse().ok());
            self.take(limit, folder.join("memory.stat"), USED_2);
        }
    }

    /// The statistics of a group include the limits of its ancestors.
    fn take_version_1(&mut self, mount: &Path, group: &Path) {
        // Within a container its own group may be the root of the mount.
        for group in group.ancestors() {
            let path = mount.join(group).join("memory.stat");
            let Ok(statistics) = fs::read_to_string(&path) else {
                continue;
            };
            let limit = value_of(&statistics, "hierarchical_memory_limit");
            self.take(limit, path, USED_1);
            return;
        }
    }

    fn take(&mut self, limit: Option<u64>, statistics: PathBuf, names: &'static [&'static str]) {
        if let Some(bytes) = limit.filter(|limit| *limit < self.bytes) {
            *self = Self {
                bytes,
                statistics: Some((statistics, names)),
            };
        }
    }

    /// Used memory. The statistics of a control group may lag, so the process's own are read too.
    fn used(&self) -> u64 {
        let group = self.statistics.as_ref().map_or(0, |(path, names)| {
            let statistics = fs::read_to_string(path).unwrap_or_default();
            let values = names.iter().filter_map(|name| value_of(&statistics, name));
            values.sum()
        });
        group.max(resident())
    }
}

/// Bytes that this process may use: the limit of its control group, or else the machine's memory.
pub fn memory_limit() -> u64 {
    Limit::find(Path::new("/")).bytes
}

/// Memory of this process that is not a file's.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = pages
        .split(' ')
        .skip(1)
        .map_while(|pages| pages.parse().ok());
    let (resident, files): (Option<u64>, Option<u64>) = (pages.next(), pages.next());
    let pages = resident.unwrap_or(0).saturating_sub(files.unwrap_or(0));
    pages * rustix::param::page_size() as u64
}

/// The number behind a name at the start of a line.
fn value_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:  4096 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_tightest_limit_of_nested_groups_counts() {
        let root = files(&[
            MACHINE,
            ("proc/self/cgroup", "0::/pod/one\n"),
            ("sys/fs/cgroup/pod/memory.max", "1000000\n"),
            (
                "sys/fs/cgroup/pod/memory.stat",
                "anon 5\nfile 900\nshmem 7\n",
            ),
            ("sys/fs/cgroup/pod/one/memory.max", "max\n"),
        ]);
        let limit = Limit::find(root.path());
        assert_eq!(limit.bytes, 1_000_000);
        let (path, names) = limit.statistics.unwrap();
        assert_eq!(path, root.path().join("sys/fs/cgroup/pod/memory.stat"));
        let text = fs::read_to_string(path).unwrap();
        let used: u64 = names.iter().filter_map(|name| value_of(&text, name)).sum();
        assert_eq!(used, 12);
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let limit = "cache 9\nhierarchical_memory_limit 2000000\ntotal_rss 3\n";
        let root = files(&[
            MACHINE,
            ("proc/self/cgroup", "4:memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.stat", limit),
        ]);
        assert_eq!(Limit::find(root.path()).bytes, 2_000_000);
        let root = files(&[
            MACHINE,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "3000000\n"),
        ]);
        assert_eq!(Limit::find(root.path()).bytes, 3_000_000);
    }

    #[test]
    fn without_a_limit_the_machine_s_memory_counts() {
        let unlimited = "hierarchical_memory_limit 9223372036854771712\n";
        for group in [
            &[MACHINE][..],
            &[
                MACHINE,
                ("proc/self/cgroup", "4:memory:/\n0::/\n"),
                ("sys/fs/cgroup/memory/memory.stat", unlimited),
            ],
        ] {
            let limit = Limit::find(files(group).path());
            assert_eq!((limit.bytes, limit.statistics), (4 << 20, None));
        }
        assert!(Limit::find(Path::new("/")).used() > 1 << 20);
    }

    #[test]
    fn a_share_is_read_strictly() {
        let read = |text: &str| text.parse::<Share>().map_err(|error| error.to_string());
        assert_eq!(read("60%"), Ok(Share::Percent(60)));
        assert_eq!(read("64MiB"), Ok(Share::Bytes(64 << 20)));
        assert_eq!(read("unbounded"), Ok(Share::Unbounded));
        for text in ["0%", "96%", "x%", "%"] {
            assert!(read(text).unwrap_err().contains("1% to 95%"), "{text}");
        }
        assert!(read("64MB").unwrap_err().contains("invalid size"));
    }

    #[test]
    fn above_the_bound_a_producer_is_refused_with_a_moment_to_come_back() {
        let memory = Memory::new(Share::Bytes(1 << 20));
        let refused = memory.check().unwrap_err();
        assert_eq!(refused.retry_after(), Some(RETRY_AFTER));
        assert!(
            refused.to_string().starts_with("memory is low"),
            "{refused}"
        );
        assert!(Memory::new(Share::Unbounded).check().is_ok());
        assert!(Memory::new(Share::Percent(95)).check().is_ok());
    }
}
