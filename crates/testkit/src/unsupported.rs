//! A capability that a backend does not offer is refused, not imitated.

use libtest_mimic::Failed;
use towpath_core::backend::{Backend, Capability};
use towpath_core::port::queue::Settings;
use towpath_core::{Error, ErrorKind, NewMessage, Result, Timestamp};

use crate::world::{jobs, text};
use crate::{Subject, World};

/// Capabilities that the row does not offer and that can be tested: details of queues only where there are queues.
pub(crate) fn absences(subject: &Subject) -> impl Iterator<Item = Capability> {
    let queues = subject.descriptor.offers(Capability::Queue);
    Capability::ALL
        .into_iter()
        .filter(|capability| !subject.descriptor.offers(*capability))
        // Not a call: it cannot be refused.
        .filter(|capability| *capability != Capability::Bookkeeping)
        .filter(move |capability| queues || is_port(*capability))
}

const fn is_port(capability: Capability) -> bool {
    use Capability::{Effects, Kv, Queue, RateLimit, Routes, SourceOffsets, Stream};
    matches!(
        capability,
        Queue | Routes | Stream | Kv | RateLimit | Effects | SourceOffsets
    )
}

/// Uses the capability, and passes when that is refused.
pub(crate) fn is_refused(
    subject: &'static Subject,
    lacks: Capability,
) -> std::result::Result<(), Failed> {
    crate::runtime()?.block_on(async {
        let backend = World::of(subject).backend().await;
        let refusal = ask(&backend, lacks).await;
        match refusal {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            other => Err(format!("expected `Unsupported`, got {other:?}").into()),
        }
    })
}

async fn ask(backend: &Backend, lacks: Capability) -> Result<()> {
    let port = |is_there: bool| match is_there {
        true => Ok(()),
        false => Err(Error::unsupported("no such port")),
    };
    let enqueue = async |message: NewMessage| {
        let queue = backend.require_queue("the suite")?;
        let outcome = queue.enqueue(&jobs(), vec![message]).await?.remove(0);
        outcome.map(drop)
    };
    let mut message = text("x");
    match lacks {
        Capability::Queue => port(backend.queue.is_some()),
        Capability::Routes => port(backend.routes.is_some()),
        Capability::Stream => port(backend.stream.is_some()),
        Capability::Kv => port(backend.kv.is_some()),
        Capability::RateLimit => port(backend.rate_limit.is_some()),
        Capability::Effects => port(backend.effects.is_some()),
        Capability::SourceOffsets => backend.require_source_offsets("the suite").map(drop),
        Capability::Delay => {
            message.not_before = Some(Timestamp::from_millis(u64::MAX / 2));
            enqueue(message).await
        }
        Capability::Expiry => {
            message.expires = Some(Timestamp::from_millis(1));
            enqueue(message).await
        }
        Capability::KeyOrder => {
            message.key = Some("key".to_owned());
            enqueue(message).await
        }
        Capability::Dedup => {
            message.dedup_id = Some("dedup".to_owned());
            enqueue(message).await
        }
        Capability::Headers => {
            message.headers.set("name", "value");
            enqueue(message).await
        }
        Capability::MaxDepth => {
            let settings = Settings {
                max_depth: Some(1),
                ..Settings::default()
            };
            let queue = backend.require_queue("the suite")?;
            queue.declare(&jobs(), &settings).await
        }
        Capability::Pause => {
            let queue = backend.require_queue("the suite")?;
            queue.pause(&jobs()).await
        }
        Capability::DeleteQueue => {
            let queue = backend.require_queue("the suite")?;
            queue.delete(&jobs(), false).await.map(drop)
        }
        Capability::Bookkeeping => Ok(()),
        Capability::Peek => {
            let queue = backend.require_queue("the suite")?;
            queue.peek(&jobs(), 1).await.map(drop)
        }
    }
}
