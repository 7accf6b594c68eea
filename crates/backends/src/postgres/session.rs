//! Statements that every database understands.

use std::error::Error as StdError;

use async_trait::async_trait;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use towpath_core::{Error, Result};

use super::{Postgres, failed};
use crate::sql::{Row, Session, Statement, Value};

#[async_trait]
impl Session for Postgres {
    async fn transact(&self, statements: Vec<Statement>) -> Result<Vec<Vec<Row>>> {
        let mut client = self.connection().await?;
        // One that is dropped is rolled back.
        let transaction = client.transaction().await.map_err(failed)?;
        let mut done = Vec::with_capacity(statements.len());
        for Statement { sql, values } in statements {
            let prepared = transaction.prepare_cached(sql).await.map_err(failed)?;
            let rows = transaction.query(&prepared, &parameters(&values)).await;
            done.push(taken(&rows.map_err(failed)?)?);
        }
        transaction.commit().await.map_err(failed)?;
        Ok(done)
    }

    async fn read(&self, Statement { sql, values }: Statement) -> Result<Vec<Row>> {
        let client = self.connection().await?;
        let prepared = client.prepare_cached(sql).await.map_err(failed)?;
        let rows = client.query(&prepared, &parameters(&values)).await;
        taken(&rows.map_err(failed)?)
    }
}

fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as _).collect()
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

impl ToSql for Value {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            // What is larger than a column is behind all that is in it.
            Self::Integer(number) if *kind == Type::INT4 => {
                i32::try_from(*number).unwrap_or(i32::MAX).to_sql(kind, out)
            }
            Self::Integer(number) => number.to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
            Self::Time(time) => time.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(
            *kind,
            Type::INT4 | Type::INT8 | Type::TEXT | Type::VARCHAR | Type::TIMESTAMPTZ
        )
    }

    to_sql_checked!();
}
