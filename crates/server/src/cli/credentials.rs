//! Where a command sends a credential, and what may decide it.
//!
//! A command reads `.env` and `towpath.toml` of the working folder, which may be a checkout of other people's sources.
//! So an address that only these files name gets no token from elsewhere, and no token crosses a network in clear text.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use reqwest::Url;
use towpath_core::address::shown;

use super::{Exit, Failure};

/// A token or key, and whether the working folder holds it.
#[derive(Clone)]
pub(super) struct Credential {
    pub(super) secret: String,
    pub(super) is_of_folder: bool,
}

impl Credential {
    /// One of the options or the environment.
    pub(super) const fn own(secret: String) -> Self {
        Self {
            secret,
            is_of_folder: false,
        }
    }

    /// The text of this file.
    pub(super) fn of_file(secret: String, path: &Path) -> Self {
        Self {
            secret,
            is_of_folder: is_below_here(path),
        }
    }
}

/// Refuses to send a credential to an address that it was not meant for, or in clear text over a network.
pub(super) fn check(
    base: &str,
    is_of_folder: bool,
    credential: Option<&Credential>,
    insecure: bool,
) -> Result<(), Failure> {
    let Some(credential) = credential else {
        return Ok(());
    };
    let refused = |why: &str| {
        Err(Failure::new(
            Exit::Denied,
            format!("`{}` {why}", shown(base)),
        ))
    };
    if is_of_folder && !credential.is_of_folder {
        return refused(
            "is an address that only the working folder names (`.env` or `towpath.toml`), and the token is not of that folder; \
             name the process with `--url`, or the file with `--config`",
        );
    }
    let url = Url::parse(base).ok();
    let is_plain = url.as_ref().is_some_and(|url| url.scheme() == "http");
    if is_plain && !insecure && !url.as_ref().and_then(Url::host_str).is_some_and(is_here) {
        return refused(
            "is plain HTTP to another machine, and the token would cross the network in clear text; \
             use `https://`, or add `--insecure`",
        );
    }
    Ok(())
}

/// Whether a host is this machine: a loopback name or address, or an address of one of its interfaces.
fn is_here(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    // Only an address of this machine can be bound.
    address.to_canonical().is_loopback()
        || !address.is_unspecified() && UdpSocket::bind((address, 0)).is_ok()
}

/// Whether a file is in the working folder, whatever links lead to it.
fn is_below_here(path: &Path) -> bool {
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    match (path.canonicalize(), here) {
        (Ok(path), Ok(here)) => path.starts_with(here),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_where_they_were_meant_to() {
        let credential = |is_of_folder| Credential {
            secret: "s".to_owned(),
            is_of_folder,
        };
        let may = |base: &str, of_folder, credential: &Credential, insecure| {
            check(base, of_folder, Some(credential), insecure).is_ok()
        };
        let (own, folders) = (credential(false), credential(true));
        for here in [
            "http://127.0.0.1:7070",
            "http://localhost:1",
            "http://[::1]:7070",
        ] {
            assert!(may(here, false, &own, false), "{here}");
            assert!(may(here, true, &folders, false), "{here}");
            assert!(!may(here, true, &own, false), "{here}");
            assert!(!may(here, true, &own, true), "{here}");
        }
        for there in [
            "http://10.6.6.6:7070",
            "http://evil.example",
            "http://localhost.evil.example",
            "http://0.0.0.0:1",
        ] {
            assert!(!may(there, false, &own, false), "{there}");
            assert!(!may(there, true, &folders, false), "{there}");
            assert!(may(there, false, &own, true), "{there}");
        }
        assert!(may("https://10.6.6.6:7070", false, &own, false));
        assert!(!may("https://10.6.6.6:7070", true, &own, false));
        assert!(check("http://10.6.6.6:7070", true, None, false).is_ok());
    }

    #[test]
    fn files_of_the_working_folder_are_known() {
        assert!(is_below_here(Path::new("Cargo.toml")));
        assert!(!is_below_here(Path::new("/proc/self/status")));
        assert!(!is_below_here(Path::new("../towpath-missing")));
    }
}
