//! Statements that every database supports, for shared code.

use async_trait::async_trait;
use jiff::Timestamp;
use towpath_core::{Error, Result};
use uuid::Uuid;

/// A value that goes in or comes out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Time(Timestamp),
}

/// A row, its columns in the order of the statement.
pub(crate) type Row = Vec<Value>;

/// A statement in the SQL that all databases have in common, its parameters `$1`, `$2` and so on.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) sql: &'static str,
    pub(crate) values: Vec<Value>,
}

/// A statement and its values.
pub(crate) fn statement<const N: usize>(sql: &'static str, values: [Value; N]) -> Statement {
    Statement {
        sql,
        values: values.into(),
    }
}

/// An executor of statements.
#[async_trait]
pub(crate) trait Session: Send + Sync {
    /// Does all of them in one transaction, or none, and gives the rows of each.
    async fn transact(&self, statements: Vec<Statement>) -> Result<Vec<Vec<Row>>>;

    /// The rows of one that changes nothing.
    async fn read(&self, statement: Statement) -> Result<Vec<Row>>;
}

impl Value {
    pub(crate) fn text(self) -> Result<String> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(unexpected("a text", &other)),
        }
    }

    pub(crate) fn integer(&self) -> Result<i64> {
        match self {
            Self::Integer(number) => Ok(*number),
            other => Err(unexpected("a number", other)),
        }
    }

    pub(crate) fn count(&self) -> Result<u64> {
        self.integer().map(super::unsigned)
    }

    pub(crate) fn time(&self) -> Result<Timestamp> {
        let parsed = match self {
            Self::Time(time) => Some(*time),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        };
        parsed.ok_or_else(|| unexpected("a time", self))
    }

    pub(crate) fn id(&self) -> Result<Uuid> {
        match self {
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
        .ok_or_else(|| unexpected("an id", self))
    }

    /// The value, unless it is null.
    pub(crate) fn optional(self) -> Option<Self> {
        (self != Self::Null).then_some(self)
    }
}

fn unexpected(what: &str, found: &Value) -> Error {
    Error::corrupt(format!(
        "unexpected value {found:?} in the database; expected {what}"
    ))
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Uuid> for Value {
    fn from(id: Uuid) -> Self {
        Self::Text(id.to_string())
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Self {
        Self::Time(time)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(super::signed(number))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(i64::from(number))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
