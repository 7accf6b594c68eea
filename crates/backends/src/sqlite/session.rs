//! Statements that every database understands.

use async_trait::async_trait;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, params_from_iter};
use towpath_core::Result;

use super::Sqlite;
use super::connection::failed;
use crate::sql::{Row, Session, Statement, Value};

#[async_trait]
impl Session for Sqlite {
    async fn transact(&self, statements: Vec<Statement>) -> Result<Vec<Vec<Row>>> {
        self.threads
            .write(move |connection| {
                let done = statements.iter().map(|one| run(connection, one));
                done.collect::<rusqlite::Result<_>>().map_err(failed)
            })
            .await
    }

    async fn read(&self, statement: Statement) -> Result<Vec<Row>> {
        self.threads
            .read(move |connection| run(connection, &statement).map_err(failed))
            .await
    }
}

fn run(connection: &Connection, statement: &Statement) -> rusqlite::Result<Vec<Row>> {
    let mut prepared = connection.prepare_cached(&statement.sql.replace('$', "?"))?;
    let columns = prepared.column_count();
    let rows = prepared.query_map(params_from_iter(&statement.values), |row| {
        (0..columns)
            .map(|column| {
                Ok(match row.get_ref(column)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(number) => Value::Integer(number),
                    ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
                    // No column of ours has these.
                    ValueRef::Real(_) | ValueRef::Blob(_) => Value::Null,
                })
            })
            .collect()
    })?;
    rows.collect()
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Null => Ok(ToSqlOutput::Borrowed(ValueRef::Null)),
            Self::Integer(number) => number.to_sql(),
            Self::Text(text) => text.to_sql(),
            Self::Time(time) => Ok(ToSqlOutput::from(super::text(*time))),
        }
    }
}
