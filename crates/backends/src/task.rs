//! Tasks of the drivers.

use std::future::Future;

use tokio::task::JoinHandle;

/// Starts a task that ends with the opened backend: by a weak reference, a closed channel or its handle.
///
/// The caller states which of them in a comment.
#[expect(
    clippy::disallowed_methods,
    reason = "an opened backend has no supervisor, and ends its own tasks"
)]
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(future)
}
