//! Names of files: which a rotation gives, which are archives, and which are patterns.

use std::ffi::OsStr;
use std::path::Path;

/// Extensions of archives, which hold no lines.
const ARCHIVES: [&str; 7] = ["gz", "xz", "zst", "bz2", "zip", "lz4", "Z"];

/// Digits of a rotation's number, at most.
const NUMBER_DIGITS: usize = 5;

/// Digits of a date, at least: `20261130`, also a Unix time.
const DATE_DIGITS: usize = 8;

/// Whether `name` is a rotated name of `base`: `NAME.N`, `NAME.DATE`, `NAME-DATE`, and the same before the
/// extension (`app-20261130.log`, `app.1.log`) or with `.old` in its place.
pub(super) fn is_rotated(base: &OsStr, name: &OsStr) -> bool {
    let (base, name) = (base.as_encoded_bytes(), name.as_encoded_bytes());
    if base.is_empty() || is_archive_name(name) {
        return false;
    }
    if name.strip_prefix(base).is_some_and(is_suffix) {
        return true;
    }
    let Some(dot) = base.iter().rposition(|byte| *byte == b'.') else {
        return false;
    };
    let (stem, extension) = base.split_at(dot);
    let Some(rest) = name.strip_prefix(stem).filter(|_| !stem.is_empty()) else {
        return false;
    };
    [extension, b".old"]
        .into_iter()
        .any(|end| rest.strip_suffix(end).is_some_and(is_suffix))
}

/// Whether it is a suffix of a rotated name: `.3`, `.20261130`, `-2026-11-30`, `-20261130.2`.
fn is_suffix(suffix: &[u8]) -> bool {
    let Some((separator, rest)) = suffix.split_first() else {
        return false;
    };
    match separator {
        b'.' => is_number(rest) || is_date(rest),
        b'-' | b'_' => is_date(rest),
        _ => false,
    }
}

fn is_number(text: &[u8]) -> bool {
    (1..=NUMBER_DIGITS).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

fn is_date(text: &[u8]) -> bool {
    let digits = text.iter().filter(|byte| byte.is_ascii_digit()).count();
    let is_part = |byte: &u8| byte.is_ascii_digit() || b"-_:.TZ+".contains(byte);
    digits >= DATE_DIGITS && text.len() <= 40 && text.iter().all(is_part)
}

/// Whether the file is an archive, by its name.
pub(super) fn is_archive(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| is_archive_name(name.as_encoded_bytes()))
}

fn is_archive_name(name: &[u8]) -> bool {
    let dot = name.iter().rposition(|byte| *byte == b'.');
    dot.is_some_and(|dot| {
        ARCHIVES
            .iter()
            .any(|one| one.as_bytes() == &name[dot + 1..])
    })
}

/// Whether an input is a pattern. A path that is there is taken literally whatever its name is.
pub(super) fn is_pattern(input: &str) -> bool {
    input.contains(['*', '?', '[']) && std::fs::symlink_metadata(input).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotated(base: &str, name: &str) -> bool {
        is_rotated(OsStr::new(base), OsStr::new(name))
    }

    #[test]
    fn rotations_are_known_by_their_suffix() {
        for name in [
            "app.log.1",
            "app.log.12",
            "app.log-20261130",
            "app.log-20261130-1796055000",
            "app.log.2026-11-30",
            "app.log.2026-11-30_12-00-00",
            "app.log-1796055000",
            "app-20261130.log",
            "app.20261130.log",
            "app-2026-11-30T12-00-00.000.log",
            "app.1.log",
            "app.1.old",
            "app.log.20261128T235959.999Z",
        ] {
            assert!(rotated("app.log", name), "{name}");
        }
    }

    #[test]
    fn neighbours_with_a_like_name_are_not_rotations() {
        for name in [
            "app.log",
            "app-audit.log",
            "application.log",
            "app.log.gz",
            "app.log.1.gz",
            "app.log-20261130.zst",
            "app.log~",
            "app.log.bak",
            "app.log.old",
            "app.log.swp",
            "app.log.journal",
            "app-1.log",
            "app2.log",
            "app.log2",
            "app.log.1a",
            "app.log.1234567",
            "app",
            "app.json",
            "app.1.json",
        ] {
            assert!(!rotated("app.log", name), "{name}");
        }
        assert!(!rotated(".log", ".1.log"), "a name without a stem");
        assert!(rotated("messages", "messages-20261130"));
        assert!(!rotated("messages", "messages-20261130.xz"));
    }
}
