//! Statements that every database understands.

use std::error::Error as StdError;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use towpath_core::{Error, Result};

use super::Postgres;
use crate::sql::{Row, Session as SqlSession, Statement, Value};

/// Earlier times have another form, which PostgreSQL does not know.
const FIRST_YEAR: Timestamp = Timestamp::constant(-62_135_596_800, 0);

#[async_trait]
impl SqlSession for Postgres {
    async fn transact(&self, statements: Vec<Statement>) -> Result<Vec<Vec<Row>>> {
        let mut session = self.session().await?;
        let transaction = session.transaction().await?;
        let mut done = Vec::with_capacity(statements.len());
        for Statement { sql, values } in statements {
            done.push(taken(&transaction.query(sql, &values).await?)?);
        }
        transaction.commit().await?;
        Ok(done)
    }

    async fn read(&self, Statement { sql, values }: Statement) -> Result<Vec<Row>> {
        taken(&self.session().await?.query(sql, &values).await?)
    }
}

fn taken(rows: &[tokio_postgres::Row]) -> Result<Vec<Row>> {
    rows.iter()
        .map(|row| {
            let columns = row.columns().iter().zip(0..);
            columns
                .map(|(column, place)| value(row, column.type_(), place))
                .collect()
        })
        .collect()
}

fn value(row: &tokio_postgres::Row, kind: &Type, place: usize) -> Result<Value> {
    match *kind {
        Type::INT4 => row
            .try_get::<_, Option<i32>>(place)
            .map(|one| one.map(i64::from).map_or(Value::Null, Value::Integer)),
        Type::INT8 => row
            .try_get::<_, Option<i64>>(place)
            .map(|one| one.map_or(Value::Null, Value::Integer)),
        Type::TIMESTAMPTZ => row
            .try_get::<_, Option<jiff::Timestamp>>(place)
            .map(Value::from),
        _ => row.try_get::<_, Option<String>>(place).map(Value::from),
    }
    .map_err(|error| Error::corrupt(format!("a column of type {kind}")).with_source(error))
}

/// Values go as text: the server knows the types, and parses them as it does literals.
impl ToSql for Value {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            // A number beyond the column's range is greater than every value in it.
            Self::Integer(number) if *kind == Type::INT4 => {
                let number = i32::try_from(*number).unwrap_or(i32::MAX);
                out.extend_from_slice(number.to_string().as_bytes());
            }
            Self::Integer(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
            Self::Time(time) if *time < FIRST_YEAR => out.extend_from_slice(b"-infinity"),
            Self::Time(time) => {
                let time = time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
                out.extend_from_slice(time.as_bytes());
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}
