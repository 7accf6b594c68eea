//! `/v1/session`: signing a browser in to the dashboard, and out.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use towpath_core::Error;
use utoipa::ToSchema;

use super::Admin;
use super::failure::Failure;
use super::routes::Answer;
use crate::auth::{Actor, CODE_LASTS, Credential, Guard, SignedIn};
use crate::http::extract::Json;

/// A credential: exactly one of the two fields.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignInRequest {
    /// The code of a link that `towpath dashboard` made; valid once, for ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The token of the data folder, or a key with the scopes that the browser gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The user of a browser.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// As in the audit log: `token`, `key:ID` or `anonymous`.
    pub actor: String,
    /// The name of the key.
    pub name: Option<String>,
    /// Scopes of the browser's requests.
    pub scopes: Vec<String>,
}

/// A code that signs a browser in once.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SignInCode {
    /// The code.
    pub code: String,
    /// Seconds until it is refused.
    pub expires_in: u64,
}

impl SessionView {
    fn anonymous() -> Self {
        Self {
            actor: Actor::Anonymous.to_string(),
            name: None,
            scopes: Vec::new(),
        }
    }
}

impl From<SignedIn> for SessionView {
    fn from(signed_in: SignedIn) -> Self {
        let SignedIn {
            actor,
            name,
            scopes,
        } = signed_in;
        Self {
            actor,
            name,
            scopes,
        }
    }
}

/// Show the user of a browser.
#[utoipa::path(get, operation_id = "show_session", path = "/v1/session", security(()), responses((status = 200, description = "The user of this browser; `anonymous`, without scopes, before the sign-in", body = SessionView)))]
pub(super) async fn show(State(admin): State<Admin>, head: Parts) -> Json<SessionView> {
    let signed_in = admin.guard.session(&head);
    Json(signed_in.map_or_else(SessionView::anonymous, SessionView::from))
}

/// Sign a browser in.
///
/// Sets a cookie that stands for the credential for twelve hours. Only pages of this listener can use it.
#[utoipa::path(post, operation_id = "sign_in", path = "/v1/session", security(()), request_body = SignInRequest, responses((status = 200, description = "The user of this browser from now on", body = SessionView), (status = 401, description = "The credential is not accepted"), (status = 429, description = "Too many failed sign-ins of this address")))]
pub(super) async fn sign_in(
    State(admin): State<Admin>,
    head: Parts,
    Json(request): Json<SignInRequest>,
) -> Result<Response, Failure> {
    let credential = match (&request.code, &request.key) {
        (Some(code), None) => Credential::Code(code),
        (None, Some(key)) => Credential::Key(key.trim()),
        _ => return Err(Error::invalid("pass either `code` or `key`").into()),
    };
    let (cookie, signed_in) = admin.guard.sign_in(&head, credential).await?;
    let mut headers = HeaderMap::new();
    headers.extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
    Ok((headers, Json(SessionView::from(signed_in))).into_response())
}

/// Sign a browser out.
#[utoipa::path(delete, operation_id = "sign_out", path = "/v1/session", security(()), responses((status = 200, description = "The user of this browser from now on: `anonymous`", body = SessionView)))]
pub(super) async fn sign_out(head: Parts) -> Response {
    let mut headers = HeaderMap::new();
    headers.extend(Guard::sign_out(&head).map(|cookie| (header::SET_COOKIE, cookie)));
    (headers, Json(SessionView::anonymous())).into_response()
}

/// Make a code that signs a browser in once.
///
/// The browser gets the scopes of the credential of this request.
#[utoipa::path(post, operation_id = "sign_in_code", path = "/v1/session/code", responses((status = 200, description = "The code", body = SignInCode)))]
pub(super) async fn code(State(admin): State<Admin>, head: Parts) -> Answer<SignInCode> {
    let anonymous = Actor::Anonymous;
    let actor = head.extensions.get::<Actor>().unwrap_or(&anonymous);
    Ok(Json(SignInCode {
        code: admin.guard.code(actor)?,
        expires_in: CODE_LASTS.as_secs(),
    }))
}
