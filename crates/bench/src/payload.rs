//! Payloads with a number and the time of their sending, so that every target is checked alike.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Number and moment, sixteen hexadecimal digits each: text, because JSON carries them too.
pub(crate) const LEAST: usize = 32;

/// Makes the payloads of one run.
#[derive(Debug)]
pub(crate) struct Payloads {
    first: u64,
    next: AtomicU64,
    began: Instant,
    size: usize,
}

impl Payloads {
    /// Payloads of `size` bytes, at least [`LEAST`].
    pub(crate) fn new(size: usize) -> Self {
        // Numbers of an earlier run, whose messages may still be in the queue, are not used again.
        let first = u64::from(rand::random::<u32>()) << 31;
        Self {
            first,
            next: AtomicU64::new(first),
            began: Instant::now(),
            size: size.max(LEAST),
        }
    }

    /// The next `count` payloads, sent now, and their numbers.
    pub(crate) fn take(&self, count: usize) -> (Range<u64>, Vec<Bytes>) {
        let first = self.next.fetch_add(count as u64, Ordering::Relaxed);
        let numbers = first..first + count as u64;
        let moment = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let payloads = numbers.clone().map(|number| {
            let mut payload = Vec::with_capacity(self.size);
            write!(payload, "{number:016x}{moment:016x}").expect("memory takes every write");
            payload.resize(self.size, b'x');
            Bytes::from(payload)
        });
        let payloads = payloads.collect();
        (numbers, payloads)
    }

    /// Number and moment of a payload; `None` for one of another program.
    pub(crate) fn read(&self, payload: &[u8]) -> Option<(u64, Instant)> {
        let text = std::str::from_utf8(payload.get(..LEAST)?).ok()?;
        let number = u64::from_str_radix(&text[..16], 16).ok()?;
        let moment = u64::from_str_radix(&text[16..], 16).ok()?;
        (self.first..self.next.load(Ordering::Relaxed))
            .contains(&number)
            .then(|| (number, self.began + Duration::from_nanos(moment)))
    }
}

/// Number of `sent` that are not in `seen`, and of those seen more than once.
pub(crate) fn check(sent: &[Range<u64>], mut seen: Vec<u64>) -> (u64, u64) {
    seen.sort_unstable();
    let all = seen.len();
    seen.dedup();
    let lost = sent
        .iter()
        .cloned()
        .flatten()
        .filter(|number| seen.binary_search(number).is_err());
    (lost.count() as u64, (all - seen.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_says_its_number_and_strangers_say_nothing() {
        let payloads = Payloads::new(100);
        let (numbers, made) = payloads.take(3);
        let read: Vec<u64> = made
            .iter()
            .map(|payload| payloads.read(payload).unwrap().0)
            .collect();
        assert_eq!(read, numbers.collect::<Vec<_>>());
        assert!(made.iter().all(|payload| payload.len() == 100));
        assert_eq!(payloads.read(b"hello"), None);
        assert_eq!(payloads.read(&[b'0'; 100]), None);
    }

    #[test]
    fn missing_and_duplicate_payloads_are_counted() {
        assert_eq!(check(&[10..13, 20..21], vec![20, 10, 12, 11]), (0, 0));
        assert_eq!(check(&[10..13, 20..21], vec![12, 12, 12, 10]), (2, 2));
    }
}
