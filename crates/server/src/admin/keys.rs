//! `/v1/kv`: keys and values, of the orders app where it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use towpath_core::Error;
use towpath_core::port::kv::{Committed, Op};
use utoipa::{IntoParams, ToSchema};

use super::Admin;
use super::routes::Answer;
use super::wire::Payload;
use crate::http::Segment;
use crate::http::error::Problem;
use crate::http::extract::{Json, Query};
use crate::http::json::Object;

/// Contents of a key: a value, or fields.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// The key.
    pub key: String,
    /// Value; absent when the key holds fields.
    pub value: Option<Payload>,
    /// Fields; empty when the key holds a value.
    pub fields: BTreeMap<String, String>,
    /// Time to live in milliseconds; absent without one.
    pub ttl_millis: Option<u64>,
}

/// A counter after a change.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Counter)]
pub struct Sum {
    /// The key.
    pub key: String,
    /// New value.
    pub value: i64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Prefix {
    /// Prefix of the keys.
    #[serde(default)]
    prefix: String,
    /// Start after this key.
    after: Option<String>,
    /// Maximum keys, 1 to 1,000.
    #[serde(default = "hundred")]
    max: usize,
}

const fn hundred() -> usize {
    100
}

/// List keys in order.
#[utoipa::path(get, operation_id = "list_keys", path = "/v1/kv", params(Prefix), responses((status = 200, description = "Their names", body = [String])))]
pub(super) async fn list(
    State(admin): State<Admin>,
    Query(asked): Query<Prefix>,
) -> Answer<Vec<String>> {
    let max = asked.max.clamp(1, 1000);
    let keys = admin
        .kv()?
        .keys(&asked.prefix, asked.after.as_deref(), max)
        .await?;
    Ok(Json(keys))
}

/// Show a key and its time to live.
#[utoipa::path(get, operation_id = "get_key", path = "/v1/kv/{key}", params(("key" = String, Path, description = "The key")), responses((status = 200, description = "Contents of the key", body = KeyView), (status = 404, description = "Not there")))]
pub(super) async fn get(State(admin): State<Admin>, Segment(key): Segment) -> Answer<KeyView> {
    let kv = admin.kv()?;
    let Some(ttl) = kv.ttl(&key).await? else {
        return Err(absent(&key).into());
    };
    // A key holds one or the other, and cannot be read as the other.
    let (value, fields) = match kv.get(&key).await {
        Ok(Some(value)) => (Some(Payload::of(&value)), Vec::new()),
        Ok(None) => return Err(absent(&key).into()),
        Err(error) if error.kind() == towpath_core::ErrorKind::Invalid => {
            (None, kv.fields(&key).await?)
        }
        Err(error) => return Err(error.into()),
    };
    let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
    Ok(Json(KeyView {
        key,
        value,
        fields: fields
            .into_iter()
            .map(|(name, value)| (name, text(value)))
            .collect(),
        ttl_millis: ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
    }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Lasting {
    /// Time to live in milliseconds [default: none].
    ttl_millis: Option<u64>,
}

/// Set a key to the body.
#[utoipa::path(put, operation_id = "set_key", path = "/v1/kv/{key}", params(("key" = String, Path, description = "The key"), Lasting), request_body = Vec<u8>, responses((status = 200, description = "New contents of the key", body = KeyView)))]
pub(super) async fn set(
    State(admin): State<Admin>,
    Segment(key): Segment,
    Query(lasting): Query<Lasting>,
    value: Bytes,
) -> Answer<KeyView> {
    let ttl = lasting.ttl_millis.map(Duration::from_millis);
    admin.kv()?.put(&key, value.clone(), ttl).await?;
    Ok(Json(KeyView {
        key,
        value: Some(Payload::of(&value)),
        fields: BTreeMap::new(),
        ttl_millis: lasting.ttl_millis,
    }))
}

/// Delete a key.
#[utoipa::path(delete, operation_id = "delete_key", path = "/v1/kv/{key}", params(("key" = String, Path, description = "The key")), responses((status = 200, description = "Number of deleted keys", body = super::Count)))]
pub(super) async fn delete(
    State(admin): State<Admin>,
    Segment(key): Segment,
) -> Answer<super::Count> {
    let kv = admin.kv()?;
    let count = u64::from(kv.ttl(&key).await?.is_some());
    kv.delete(&key).await?;
    Ok(Json(super::Count { count }))
}

/// The change of a counter.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Increment)]
pub(super) struct By {
    /// Amount to add; negative to subtract.
    by: i64,
}

/// Add to a counter; an absent key counts as 0.
#[utoipa::path(post, operation_id = "add_to_key", path = "/v1/kv/{key}/add", params(("key" = String, Path, description = "The key")), request_body = By, responses((status = 200, description = "The new value", body = Sum)))]
pub(super) async fn add(
    State(admin): State<Admin>,
    Segment(key): Segment,
    Json(Object(By { by })): Json<Object<By>>,
) -> Answer<Sum> {
    let op = Op::Add {
        key: key.clone(),
        delta: by,
        min: i64::MIN,
        max: i64::MAX,
    };
    let sum = match admin.kv()?.commit(vec![op]).await? {
        Committed::Applied(values) => values.into_iter().next().flatten(),
        Committed::Refused { .. } => None,
    };
    let text = sum.as_deref().and_then(|sum| std::str::from_utf8(sum).ok());
    let value = text.and_then(|text| text.parse().ok());
    let value = value.ok_or_else(|| Error::invalid("the sum is out of range"))?;
    Ok(Json(Sum { key, value }))
}

fn absent(key: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no key `{key}`"))
}
