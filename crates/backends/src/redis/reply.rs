//! Parses replies of scripts; an unexpected one is `Corrupt`.

use redis::Value;
use towpath_core::{Error, Result};

pub(super) fn unexpected(what: &str, value: &Value) -> Error {
    let mut shown = format!("{value:?}");
    shown.truncate(80);
    Error::corrupt(format!(
        "unexpected answer of redis `{shown}`; expected {what}"
    ))
}

pub(super) fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        other => Err(unexpected("a list", &other)),
    }
}

/// A list of exactly `N` values.
pub(super) fn tuple<const N: usize>(value: Value) -> Result<[Value; N]> {
    let values = list(value)?;
    <[Value; N]>::try_from(values).map_err(|values| unexpected("a tuple", &Value::Array(values)))
}

pub(super) fn bytes(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Okay => Ok(b"OK".to_vec()),
        other => Err(unexpected("a string", &other)),
    }
}

pub(super) fn text(value: Value) -> Result<String> {
    String::from_utf8(bytes(value)?)
        .map_err(|error| Error::corrupt("redis answered text that is not UTF-8").with_source(error))
}

/// A number, also one that is written as text.
pub(super) fn number(value: Value) -> Result<u64> {
    match &value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(digits) => std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok()),
        _ => None,
    }
    .ok_or_else(|| unexpected("a number", &value))
}
