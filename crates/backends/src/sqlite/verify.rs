//! Reading a database file completely, without changing it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use towpath_core::{Error, Result};

/// Most faults named of one file.
const FAULTS: u32 = 20;

/// Faults that SQLite's integrity check finds in a file.
///
/// The file's log that a killed process left is read with it; SQLite makes the index of that log beside it.
/// No process may have the file open.
///
/// # Errors
/// `Unavailable` when it cannot be read.
pub fn verify(file: &Path) -> Result<Vec<String>> {
    let unreadable = |error: rusqlite::Error| {
        let text = format!("the database `{}` cannot be read", file.display());
        Error::unavailable(text).with_source(error)
    };
    // SQLite takes an empty file for an empty database.
    let is_empty = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() == 0);
    if is_empty(file) && !has_log(file) {
        return Ok(vec!["the file is empty".to_owned()]);
    }
    match check(file) {
        Ok(faults) => Ok(faults),
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if matches!(
                failure.code,
                rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt
            ) =>
        {
            Ok(vec![failure.to_string()])
        }
        Err(error) => Err(unreadable(error)),
    }
}

fn check(file: &Path) -> rusqlite::Result<Vec<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(file), flags)?;
    let query = format!("PRAGMA integrity_check({FAULTS})");
    let mut statement = connection.prepare(&query)?;
    let lines = statement.query_map((), |row| row.get::<_, String>(0))?;
    let lines: Vec<String> = lines.collect::<rusqlite::Result<_>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// The file as SQLite reads it: as one that does not change, unless a log with the newest pages stands beside it.
fn uri(file: &Path) -> String {
    let mut uri = "file:".to_owned();
    for character in file.to_string_lossy().chars() {
        match character {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            other => uri.push(other),
        }
    }
    if !has_log(file) {
        uri.push_str("?immutable=1");
    }
    uri
}

fn has_log(file: &Path) -> bool {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(PathBuf::from(log)).is_ok_and(|log| log.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_has_no_fault_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("100% #1?.db");
        let connection = Connection::open(&file).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE t (a TEXT); CREATE INDEX i ON t (a);
                 WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000)
                 INSERT INTO t SELECT 'a longer text ' || x FROM n;",
            )
            .unwrap();
        // As a killed process leaves it: the newest changes are in the log.
        let killed = folder.path().join("killed.db");
        std::fs::copy(&file, &killed).unwrap();
        let log = |file: &Path| PathBuf::from(format!("{}-wal", file.display()));
        std::fs::copy(log(&file), log(&killed)).unwrap();
        assert_eq!(verify(&killed).unwrap(), [""; 0]);
        drop(connection);
        assert_eq!(verify(&file).unwrap(), [""; 0]);
        let whole = std::fs::read(&file).unwrap();
        for page in [1, 3, whole.len() / 4096 - 1] {
            let mut bytes = whole.clone();
            bytes[page * 4096..page * 4096 + 200].fill(0xa5);
            std::fs::write(&file, bytes).unwrap();
            assert!(!verify(&file).unwrap().is_empty(), "page {page}");
        }
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(!verify(&file).unwrap().is_empty());
        std::fs::write(&file, "").unwrap();
        assert_eq!(verify(&file).unwrap(), ["the file is empty"]);
        std::fs::write(&file, "this is not a database at all, and long enough").unwrap();
        assert!(!verify(&file).unwrap().is_empty());
        assert!(verify(&folder.path().join("missing.db")).is_err());
    }
}
