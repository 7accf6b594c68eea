//! The promises of the queue port, by theme.

mod corners;
mod dead;
mod delivery;
mod durable;
mod intake;
mod model;
mod operate;
mod order;

use libtest_mimic::Failed;
use towpath_core::backend::Capability;
use towpath_core::port::queue::Settings;

use crate::world::{attempts, name, text};
use crate::{Case, Subject, World};

/// Every case.
pub(crate) fn cases() -> Vec<Case> {
    [
        intake::cases(),
        delivery::cases(),
        order::cases(),
        dead::cases(),
        durable::cases(),
        operate::cases(),
        corners::cases(),
        model::cases(),
    ]
    .concat()
}

/// A row that lacks something must say so instead of imitating it.
pub(crate) fn refuses(subject: &'static Subject, lacks: Capability) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut world = World::of(subject);
        let backend = world.backend().await;
        let absent = match lacks {
            Capability::Queue => Some(backend.queue.is_none()),
            Capability::Routes => Some(backend.routes.is_none()),
            Capability::Stream => Some(backend.stream.is_none()),
            Capability::Kv => Some(backend.kv.is_none()),
            Capability::RateLimit => Some(backend.rate_limit.is_none()),
            Capability::Effects => Some(backend.effects.is_none()),
            _ => None,
        };
        match absent {
            Some(true) => return Ok(()),
            Some(false) => return Err(format!("it has {lacks:?} and does not say so").into()),
            None => {}
        }
        let queue = world.queue().await;
        let (mut message, mut settings, jobs) = (text("x"), attempts(3), name("jobs"));
        match lacks {
            Capability::Delay => {
                message.not_before = Some(towpath_core::Timestamp::from_millis(u64::MAX / 2))
            }
            Capability::Expiry => message.expires = Some(towpath_core::Timestamp::from_millis(1)),
            Capability::KeyOrder => message.key = Some("key".to_owned()),
            Capability::Dedup => message.dedup_id = Some("dedup".to_owned()),
            Capability::Headers => message.headers.set("name", "value"),
            Capability::MaxDepth => {
                settings = Settings {
                    max_depth: Some(1),
                    ..settings
                }
            }
            Capability::Pause => return expect_unsupported(queue.pause(&jobs).await.map(drop)),
            Capability::Peek => return expect_unsupported(queue.peek(&jobs, 1).await.map(drop)),
            other => return Err(format!("no way is known to ask for {other:?}").into()),
        }
        let declared = queue.declare(&jobs, &settings).await;
        if declared.is_err() {
            return expect_unsupported(declared);
        }
        let outcome = queue
            .enqueue(&jobs, vec![message])
            .await
            .and_then(|mut outcomes| outcomes.remove(0));
        expect_unsupported(outcome.map(drop))
    })
}

fn expect_unsupported(result: towpath_core::Result<()>) -> Result<(), Failed> {
    match result {
        Err(error) if error.kind() == towpath_core::ErrorKind::Unsupported => Ok(()),
        other => Err(format!("expected `Unsupported`, got {other:?}").into()),
    }
}
