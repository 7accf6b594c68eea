//! The HTTP side of users.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::sync::Arc;

use aws_lc_rs::digest;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use jiff::{Timestamp, Unit};
use serde::Deserialize;
use serde_json::{Value, json};
use towpath_core::port::Users;
use towpath_core::port::users::{Change, Changed, Created, RequestKey, User};
use uuid::Uuid;

use super::event::{Happened, event};
use crate::http::error::Problem;
use crate::http::extract::{Json, Path, Query};
use crate::http::preconditions::{Preconditions, Tags, Unmet, not_modified, with_tag};
use crate::http::{Asking, json};
use crate::idempotency::{self, OTHER_REQUEST, replayed};
use crate::telemetry::LastCall;

/// Longest address and name, in characters. Source: the tables of the reference system.
const MAX_LENGTH: usize = 255;

/// Most users of one page, and how many there are unless the client says.
const MAX_PAGE: usize = 1_000;
const PAGE: usize = 100;

/// The state of the routes.
#[derive(Clone)]
pub struct UserApi {
    /// Where users are.
    pub users: Arc<dyn Users>,
    /// Where their events go.
    pub topic: Arc<str>,
    /// Whether `POST /api/test/crash` may stop the process.
    pub crash_test: bool,
    /// The last change.
    pub calls: LastCall,
}

impl UserApi {
    /// The outcome of a change, noted.
    fn noted<T>(&self, outcome: towpath_core::Result<T>) -> towpath_core::Result<T> {
        self.calls.note(&outcome);
        outcome
    }
}

/// `/api/users…` and `/api/test/crash`.
pub fn user_routes(api: UserApi) -> Router {
    Router::new()
        .route("/api/users", post(create).get(list))
        .route("/api/users/{id}", get(show).put(update).delete(delete))
        .route("/api/test/crash", post(crash))
        .with_state(api)
}

/// The requests of [`user_routes`] that have parameters.
pub fn user_queries() -> [Asking; 1] {
    [(Method::GET, "/api/users".into())]
}

/// The fields of a user in a request.
#[derive(Deserialize)]
struct UserRequest {
    #[serde(default)]
    email: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    crash_after_db: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    cursor: Option<String>,
    limit: Option<usize>,
}

type Answer = Result<Response, Problem>;

async fn create(State(api): State<UserApi>, headers: HeaderMap, body: Bytes) -> Answer {
    let fields = parse(&body)?;
    let request = request_key(&headers, &body)?;
    let (user, is_replay) = insert(&api, fields, request).await?;
    let location = format!("/api/users/{}", user.id);
    let mut response = shown(&user);
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = location.try_into() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(replayed(response, is_replay))
}

/// The reference system's test hook as its author meant it: with `crash_after_db` the process stops between the commit
/// and the answer.
async fn crash(State(api): State<UserApi>, body: Bytes) -> Answer {
    if !api.crash_test {
        let text = "crash tests are off; `accounts.crash_test = \"on\"` allows them";
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    }
    let fields = parse(&body)?;
    let stops = fields.crash_after_db;
    insert(&api, fields, None).await?;
    if stops {
        tracing::error!("crash test requested; stopping after the commit");
        crate::telemetry::flush_logs();
        std::process::abort();
    }
    Ok("Crash test completed".into_response())
}

/// The user as created now, or when the same request came before, and whether it did.
async fn insert(
    api: &UserApi,
    fields: UserRequest,
    request: Option<RequestKey>,
) -> Result<(User, bool), Problem> {
    check_address(&fields.email)?;
    let at = now();
    let user = User {
        id: Uuid::now_v7(),
        email: fields.email,
        name: fields.name,
        created_at: at,
        updated_at: at,
        version: 1,
    };
    let event = event(&api.topic, Happened::Created, &user, at);
    let created = api.users.create(user.clone(), event, request).await;
    match api.noted(created)? {
        Created::New => {
            tracing::debug!(user = %user.id, "user created");
            Ok((user, false))
        }
        Created::Before(user) => Ok((user, true)),
        Created::EmailTaken => Err(email_taken()),
        Created::KeyTaken => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            OTHER_REQUEST,
        )),
    }
}

async fn show(State(api): State<UserApi>, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let user = api.users.find(user_id(&id)?).await?.ok_or_else(absent)?;
    let tag = user.version.to_string();
    match Preconditions::of(&headers).check(Some(&[tag.as_str()])) {
        Ok(()) => Ok(shown(&user)),
        Err(Unmet::NoneMatch) => Ok(not_modified(&tag)),
        Err(Unmet::Match) => Err(another_version(user.version)),
    }
}

async fn list(State(api): State<UserApi>, Query(page): Query<Page>) -> Answer {
    let limit = page.limit.unwrap_or(PAGE);
    if limit == 0 || limit > MAX_PAGE {
        let text = format!("`limit` is {limit}; it must be from 1 to {MAX_PAGE}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, text));
    }
    let after = match page.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => Some(Uuid::parse_str(cursor).map_err(|_| {
            let text = format!("`cursor` is `{cursor}`; it must be a `next_cursor` of this list");
            Problem::new(StatusCode::BAD_REQUEST, text)
        })?),
    };
    // One more than is shown tells whether there is another page.
    let mut users = api.users.list(after, limit + 1).await?;
    let is_last = users.len() <= limit;
    users.truncate(limit);
    let next = users.last().filter(|_| !is_last).map(|user| user.id);
    let users: Vec<Value> = users.iter().map(json_of).collect();
    Ok(Json(json!({ "users": users, "next_cursor": next })).into_response())
}

async fn update(
    State(api): State<UserApi>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let (id, fields) = (user_id(&id)?, parse(&body)?);
    if let Err(problem) = check_address(&fields.email) {
        // Another program may have stored it: the user can be renamed all the same.
        let stored = api.users.find(id).await?;
        if stored.is_none_or(|user| user.email != fields.email) {
            return Err(problem);
        }
    }
    let version = version(&api, id, &headers).await?;
    let at = now();
    let described = User {
        id,
        email: fields.email.clone(),
        name: fields.name.clone(),
        created_at: at,
        updated_at: at,
        version: 0,
    };
    let event = event(&api.topic, Happened::Updated, &described, at);
    let change = Change {
        id,
        email: fields.email,
        name: fields.name,
        updated_at: at,
        version,
    };
    let update = api.users.update(change, event).await;
    let user = changed(api.noted(update)?)?;
    tracing::debug!(user = %user.id, version = user.version, "user updated");
    Ok(shown(&user))
}

async fn delete(State(api): State<UserApi>, Path(id): Path<String>, headers: HeaderMap) -> Answer {
    let id = user_id(&id)?;
    let version = version(&api, id, &headers).await?;
    let at = now();
    let described = User {
        id,
        email: String::new(),
        name: String::new(),
        created_at: at,
        updated_at: at,
        version: 0,
    };
    let event = event(&api.topic, Happened::Deleted, &described, at);
    let delete = api.users.delete(id, version, event).await;
    changed(api.noted(delete)?)?;
    tracing::debug!(user = %id, "user deleted");
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn changed(changed: Changed) -> Result<User, Problem> {
    match changed {
        Changed::Done(user) => Ok(user),
        Changed::Absent => Err(absent()),
        Changed::EmailTaken => Err(email_taken()),
        Changed::Version(version) => Err(another_version(version)),
    }
}

fn another_version(version: u64) -> Problem {
    let text = format!("the user is at version {version} by now; read it again");
    Problem::new(StatusCode::PRECONDITION_FAILED, text)
}

fn absent() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "User not found")
}

fn email_taken() -> Problem {
    Problem::new(StatusCode::CONFLICT, "another user has this email")
}

fn json_of(user: &User) -> Value {
    json!({
        "id": user.id, "email": user.email, "name": user.name,
        "created_at": user.created_at, "updated_at": user.updated_at,
    })
}

/// A user with its version as the entity tag.
fn shown(user: &User) -> Response {
    with_tag(
        Json(json_of(user)).into_response(),
        &user.version.to_string(),
    )
}

/// Parses the body; the address in lower case.
fn parse(body: &[u8]) -> Result<UserRequest, Problem> {
    let bad = |text: &str| Problem::new(StatusCode::BAD_REQUEST, text);
    let fields: UserRequest = json::object(body).map_err(|refusal| match refusal.is_json {
        true => bad(&refusal.reason),
        // The contract's text.
        false => bad("Invalid JSON"),
    })?;
    let (email, name) = (
        fields.email.trim().to_lowercase(),
        fields.name.trim().to_owned(),
    );
    if email.is_empty() || name.is_empty() {
        return Err(bad("Email and name are required"));
    }
    let wrong = |text: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text);
    for (what, text) in [("email", &email), ("name", &name)] {
        if text.chars().count() > MAX_LENGTH {
            return Err(wrong(format!("`{what}` is over {MAX_LENGTH} characters")));
        }
        if text.chars().any(char::is_control) {
            return Err(wrong(format!("`{what}` has a control character")));
        }
    }
    Ok(UserRequest {
        email,
        name,
        crash_after_db: fields.crash_after_db,
    })
}

fn check_address(email: &str) -> Result<(), Problem> {
    let is_address = email
        .split_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !host.contains('@'))
        && !email.contains(char::is_whitespace);
    if is_address {
        return Ok(());
    }
    let text = format!("`email` is `{email}`, which is not a mail address");
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text))
}

fn user_id(text: &str) -> Result<Uuid, Problem> {
    Uuid::parse_str(text).map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "Invalid user ID"))
}

/// The version that a change must find, when the client names any; those who change the user meanwhile are refused by
/// the database.
async fn version(api: &UserApi, id: Uuid, headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let preconditions = Preconditions::of(headers);
    if !preconditions.is_some() {
        return Ok(None);
    }
    let user = api.users.find(id).await?.ok_or_else(absent)?;
    let tag = user.version.to_string();
    match preconditions.check(Some(&[tag.as_str()])) {
        Ok(()) => Ok(Some(user.version).filter(|_| preconditions.if_match != Some(Tags::Any))),
        Err(Unmet::Match) => Err(another_version(user.version)),
        Err(Unmet::NoneMatch) => {
            let text = format!(
                "the user is at version {}, which `If-None-Match` excludes",
                user.version
            );
            Err(Problem::new(StatusCode::PRECONDITION_FAILED, text))
        }
    }
}

fn request_key(headers: &HeaderMap, body: &[u8]) -> Result<Option<RequestKey>, Problem> {
    let Some(key) = idempotency::key(headers)? else {
        return Ok(None);
    };
    Ok(Some(RequestKey {
        key: key.to_owned(),
        digest: hex::encode(digest::digest(&digest::SHA256, body)),
    }))
}

/// Now, in the unit that the database keeps.
fn now() -> Timestamp {
    let now = Timestamp::now();
    let round = jiff::TimestampRound::new()
        .smallest(Unit::Microsecond)
        .mode(jiff::RoundMode::Trunc);
    now.round(round).unwrap_or(now)
}
