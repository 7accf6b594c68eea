//! An estimate of the strength of a configured key.

/// Least strength of a key that other machines can guess at.
pub(super) const LEAST_BITS: f64 = 80.0;

/// Estimated bits of a key: each character counts by the size of its classes, unless it repeats or continues the one before.
///
/// It is an upper bound for words; it finds the keys that are too short or typed along the keyboard's rows of digits.
pub(super) fn bits(key: &str) -> f64 {
    let has = |is_in: fn(&char) -> bool, size: f64| match key.chars().any(|it| is_in(&it)) {
        true => size,
        false => 0.0,
    };
    let alphabet = has(char::is_ascii_lowercase, 26.0)
        + has(char::is_ascii_uppercase, 26.0)
        + has(char::is_ascii_digit, 10.0)
        + has(|it| !it.is_ascii_alphanumeric(), 33.0);
    let mut before = None;
    let mut counted = 0_u32;
    for it in key.chars().map(u32::from) {
        if before.is_none_or(|before: u32| before.abs_diff(it) > 1) {
            counted += 1;
        }
        before = Some(it);
    }
    f64::from(counted) * alphabet.max(1.0).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_repeated_keys_are_weak() {
        for weak in [
            "",
            "password",
            "12345678",
            "1234567890123456789012345",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "abcdefghijklmnopqrstuvwxyz",
            "OPERATORKEY1",
            "Tr0ub4dor&3",
        ] {
            assert!(bits(weak) < LEAST_BITS, "{weak}: {}", bits(weak));
        }
        for strong in [
            "5f1d7a90c3e84b26a0d9f2e17c48b635",
            "Zk3vQ9xT2mWp7LrY",
            "tp_0a1b2c3d4e5f_q3Jx0uV9sT6mWp7LrYkq3Jx0uV9sT6mWp7LrYk3Jx0",
            "a-key-of-this-test",
        ] {
            assert!(bits(strong) >= LEAST_BITS, "{strong}: {}", bits(strong));
        }
    }
}
