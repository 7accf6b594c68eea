//! File descriptors: each connection is one, and the store needs its own.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that connections leave to the store, the sinks and the admin listener.
const RESERVED: usize = 256;

/// Raises the soft limit of open files to the hard one. Returns how many connections fit beside everything else.
///
/// Systems keep the soft limit low for the sake of programs that use `select`, which this is not.
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it is refused the old limit stays, and is read next.
    setrlimit(Resource::Nofile, raised).ok();
    let files = getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |files| {
            usize::try_from(files).unwrap_or(usize::MAX)
        });
    files.saturating_sub(RESERVED).max(files / 2)
}
