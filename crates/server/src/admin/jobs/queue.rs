//! Creates queues, and changes their settings.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use towpath_core::port::queue::Settings;
use towpath_core::{ErrorKind, QueueName};

use super::super::Admin;
use super::super::failure::Failure;
use super::super::routes::{QueuePath, view};
use super::super::wire::{ProblemView, QueueStats};
use super::OptionalJson;
use crate::http::Segment;
use crate::http::extract::Json;
use crate::queue_settings::QueueSettings;

/// Create a queue, or replace its settings.
///
/// 409 for a queue that the configuration declares. A backend that does not keep settings (RabbitMQ, Kafka) has them until
/// the process ends; declare them in the configuration there.
#[utoipa::path(put, operation_id = "put_queue", path = "/v1/queues/{queue}", params(QueuePath), request_body(content = inline(Option<QueueSettings>), description = "All members are optional, and so is the body"), responses((status = 200, description = "Its settings were replaced", body = QueueStats), (status = 201, description = "It was created", body = QueueStats), (status = 409, description = "The configuration declares it", body = ProblemView, content_type = "application/problem+json")))]
pub(in super::super) async fn put(
    State(admin): State<Admin>,
    Segment(name): Segment,
    OptionalJson(settings): OptionalJson<QueueSettings>,
) -> Result<Response, Failure> {
    let name = QueueName::new(&name)?;
    let settings = Settings::try_from(settings)?;
    admin.jobs.declared().refuse_change(&name)?;
    let (queue, status) = match admin.find(name.as_str()).await {
        Ok((queue, _)) => (queue, StatusCode::OK),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            (admin.queues()?.remove(0), StatusCode::CREATED)
        }
        Err(error) => return Err(error.into()),
    };
    queue.declare(&name, &settings).await?;
    Ok((status, Json(view(&*queue, &name).await?)).into_response())
}
