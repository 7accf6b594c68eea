//! The environment of commands: declared variables only, because the environment of a server holds its passwords.

use std::ffi::{OsStr, OsString};

/// Variables that programs need to find files and to word their output.
const COMMON: [&str; 12] = [
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "SHELL",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_RUNTIME_DIR",
];

/// Locale categories begin so.
const LOCALE: &[u8] = b"LC_";

/// Declares every variable.
const ALL: &str = "*";

/// The variables that a command gets: the common ones, and those that are declared.
pub(super) fn passed(
    declared: &[String],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let is_passed = |name: &OsStr| {
        COMMON.iter().any(|common| name == *common)
            || name.as_encoded_bytes().starts_with(LOCALE)
            || declared
                .iter()
                .any(|one| one == ALL || name == one.as_str())
    };
    let all = environment.into_iter();
    all.filter(|(name, _)| is_passed(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_declared_variables_only() {
        let all = [
            "PATH",
            "LC_ALL",
            "API_KEY",
            "API_KEY_2",
            "DB_PASSWORD",
            "PATHS",
        ];
        let names = |declared: &[&str]| {
            let declared: Vec<String> = declared.iter().map(|name| (*name).to_owned()).collect();
            let all = all.map(|name| (name.into(), "x".into()));
            let passed = passed(&declared, all).into_iter();
            passed
                .map(|(name, _)| name.into_string().expect("a name"))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["PATH", "LC_ALL"]);
        assert_eq!(names(&["API_KEY"]), ["PATH", "LC_ALL", "API_KEY"]);
        assert_eq!(names(&["*"]), all);
    }
}
