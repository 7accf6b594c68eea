//! Which process listens on a port of this machine.

use std::fmt;
use std::fs;
use std::time::Duration;

use towpath::net;

/// Timeout for the document of a listener.
const PROBE: Duration = Duration::from_secs(1);

/// State of a listening socket. Source: `include/net/tcp_states.h` of Linux.
const LISTEN: &str = "0A";

/// A process that listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pid: u32,
    program: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid)
    }
}

/// The owner of a port, where this user may see it. Source: proc(5), `/proc/net/tcp` and `/proc/PID/fd`.
pub(super) fn owner(port: u16) -> Option<Owner> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let tables = tables.into_iter().flatten();
    let sockets: Vec<String> = tables
        .flat_map(|table| sockets(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = pids.find(|pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut files = files.into_iter().flatten().flatten();
        files.any(|file| {
            let link = fs::read_link(file.path()).unwrap_or_default();
            sockets.iter().any(|socket| link.as_os_str() == &**socket)
        })
    })?;
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let program = program.trim().to_owned();
    Some(Owner { pid, program })
}

/// The inodes of the sockets that listen on a port, from a table of `/proc/net`.
fn sockets(table: &str, port: u16) -> Vec<String> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let hex = local.rsplit_once(':')?.1;
        let is_it = u16::from_str_radix(hex, 16) == Ok(port) && *state == LISTEN;
        is_it.then(|| (*inode).to_owned())
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// Whether a Towpath has its admin interface on a port of this machine: by its program, or by its document where the
/// process belongs to another user.
pub(super) async fn is_towpath(port: u16) -> bool {
    if owner(port).is_some_and(|owner| owner.program == "towpath") {
        return true;
    }
    let document = async {
        let client = net::client().timeout(PROBE).build().ok()?;
        let url = format!("http://127.0.0.1:{port}/openapi.json");
        let answer = client.get(url).send().await.ok()?;
        let document: serde_json::Value =
            serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        let title = document["info"]["title"].as_str()?;
        Some(title.starts_with("Towpath"))
    };
    document.await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_owner_of_a_listening_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(owner(port).unwrap().pid, std::process::id());
        drop(listener);
        assert_eq!(owner(port), None);
    }
}
