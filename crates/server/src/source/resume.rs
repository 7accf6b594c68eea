//! Where a file was read to by a reader that keeps no position: behind the last line that it sent.

use std::collections::VecDeque;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;

use super::find;
use super::inputs::{Inputs, resolved};
use super::position::Position;
use super::tail::Saved;

/// Where one of the inputs was read to by another reader.
pub struct Resumed {
    /// Behind the last line that the other reader sent.
    pub position: Position,
    /// Number of the last lines that were found in the file, one behind the other.
    pub matched: usize,
}

/// Which of the inputs these lines, the last ones that another reader sent, are from, and where they end: the longest
/// run of them after the saved position, and of equal runs the first. `None` when no file has the last line.
///
/// # Errors
/// Those of reading the files.
pub fn resume(
    inputs: &Inputs,
    saved: &Saved,
    host: &str,
    lines: &[Bytes],
) -> io::Result<Option<Resumed>> {
    let mut best: Option<Resumed> = None;
    for path in inputs.clone().paths() {
        let Some(file) = find::open(&path)? else {
            continue;
        };
        let start = Position::beginning(&file, path.clone(), resolved(&path))?;
        let at = match saved.positions.get(&start.key()) {
            // A later truncation or overwrite is detected by the tail.
            Some(at) if !at.holds_in(&file)? => continue,
            Some(at) => at.clone(),
            None if saved.paths.values().any(|(there, _)| *there == path) => continue,
            None => start,
        };
        let Some((end, matched)) = end_of(&file, at.offset, lines)? else {
            continue;
        };
        if best.as_ref().is_none_or(|best| best.matched < matched) {
            let host = host.to_owned();
            let position = Position {
                host,
                ..at.moved(&file, end)?
            };
            best = Some(Resumed { position, matched });
        }
    }
    Ok(best)
}

/// The position after this many lines of a file, or behind its last whole line.
///
/// # Errors
/// Those of reading the file; `InvalidInput` when it has fewer lines.
pub fn position_at(path: &Path, lines: Option<u64>, host: &str) -> io::Result<Position> {
    let file = File::open(path)?;
    // As the reader names it, or the position would be of another file.
    let start = Position::beginning(&file, path.to_owned(), resolved(path))?;
    let (mut reader, mut line) = (BufReader::new(&file), Vec::new());
    let (mut count, mut end) = (0, 0);
    while lines.is_none_or(|lines| count < lines) {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        count += 1;
        end += length as u64;
    }
    if let Some(lines) = lines
        && count < lines
    {
        let text = format!("it has {count} lines, and {lines} were named");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let host = host.to_owned();
    Ok(Position {
        host,
        ..start.moved(&file, end)?
    })
}

/// Where the longest run of the last of these lines ends in a file, and how many it has.
fn end_of(file: &File, from: u64, lines: &[Bytes]) -> io::Result<Option<(u64, usize)>> {
    let hashes: Vec<u64> = lines.iter().rev().map(|line| hash(line)).collect();
    let Some(last) = hashes.first() else {
        return Ok(None);
    };
    let mut file = file;
    file.seek(SeekFrom::Start(from))?;
    let (mut reader, mut line) = (BufReader::with_capacity(1 << 16, file), Vec::new());
    // The newest line is in front.
    let mut seen = VecDeque::with_capacity(hashes.len() + 1);
    let (mut end, mut best) = (from, None::<(u64, usize)>);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let Some((b'\n', text)) = line.split_last() else {
            return Ok(best);
        };
        end += length as u64;
        seen.push_front(hash(text));
        seen.truncate(hashes.len());
        if seen.front() == Some(last) {
            let both = seen.iter().zip(&hashes);
            let matched = both.take_while(|(one, other)| one == other).count();
            if best.is_none_or(|(_, most)| most < matched) {
                best = Some((end, matched));
            }
        }
    }
}

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn end(text: &[u8], from: u64, lines: &[&str]) -> Option<(u64, usize)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let lines: Vec<Bytes> = lines
            .iter()
            .map(|line| Bytes::copy_from_slice(line.as_bytes()))
            .collect();
        end_of(&file, from, &lines).unwrap()
    }

    #[test]
    fn the_longest_run_decides_and_the_first_of_equal_ones() {
        let text = b"a\nb\nc\na\nx\nc\nopen";
        assert_eq!(end(text, 0, &["b", "c"]), Some((6, 2)));
        assert_eq!(end(text, 0, &["x", "c"]), Some((12, 2)));
        assert_eq!(end(text, 0, &["c"]), Some((6, 1)));
        assert_eq!(
            end(text, 6, &["b", "c"]),
            Some((12, 1)),
            "after the saved position"
        );
        assert_eq!(end(text, 0, &["open"]), None, "not a whole line");
        assert_eq!(end(text, 0, &["d"]), None);
        assert_eq!(end(text, 0, &[]), None);
        assert_eq!(end(b"t\nt\nt\nt\n", 0, &["t", "t"]), Some((4, 2)));
        assert_eq!(end(b"a\r\nb\r\n", 0, &["a\r"]), Some((3, 1)));
    }
}
