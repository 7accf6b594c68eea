//! Detects that a client ended its connection while a request waits.
//!
//! hyper reads nothing of a connection whose request is being answered, because clients that end their side still read
//! the answer. A request that waits for news has no use for such a client.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// The connection of a request of HTTP/1; an extension of the request.
#[derive(Debug, Clone)]
pub struct Hangup(Arc<OwnedFd>);

impl Hangup {
    /// Of this connection. `None` when no file descriptor is left: the end is then noticed with the answer.
    pub(super) fn of(stream: &TcpStream) -> Option<Self> {
        let descriptor = stream.as_fd().try_clone_to_owned().ok()?;
        Some(Self(Arc::new(descriptor)))
    }

    /// Resolves when the client ended its side of the connection.
    pub async fn seen(&self) {
        if let Ok(watched) = self.watch() {
            while let Ok(ready) = watched.ready(Interest::READABLE).await {
                if ready.is_read_closed() {
                    return;
                }
                // Bytes of a next request: wait for another change.
                let not_now = || Err::<(), _>(ErrorKind::WouldBlock.into());
                watched.try_io(Interest::READABLE, not_now).ok();
            }
        }
        std::future::pending().await
    }

    /// The connection, registered once more: dropping it ends the registration alone.
    fn watch(&self) -> std::io::Result<TcpStream> {
        TcpStream::from_std(self.0.try_clone()?.into())
    }
}
