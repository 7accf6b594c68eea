//! A TCP proxy that breaks connections in the ways that networks do.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// A fault of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every connection is reset, the open ones too.
    Reset,
    /// Each piece arrives after this delay.
    Latency(Duration),
    /// Drops everything in both directions, silently.
    BlackHole,
    /// Requests arrive, answers are dropped.
    HalfOpen,
    /// A connection is reset after this many bytes of answers.
    CutAfter(usize),
}

/// A proxy in front of one port on the loopback address; gone when dropped.
pub struct Proxy {
    port: u16,
    fault: watch::Sender<Fault>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Starts one in front of `target`, on a free port.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (fault, faults) = watch::channel(Fault::None);
        // Ends with the proxy.
        let accepting = tokio::spawn(accept(listener, target, faults)).abort_handle();
        Self {
            port,
            fault,
            accepting,
        }
    }

    /// Its own port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Breaks or repairs the network, from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, faults: watch::Receiver<Fault>) {
    // Aborts the open connections when this task ends.
    let mut open = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let faults = faults.clone();
        open.spawn(async move {
            let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))).await;
            if let Ok(server) = server {
                join(client, server, faults).await;
            }
        });
        while open.try_join_next().is_some() {}
    }
}

/// Forwards bytes both ways until one side closes or the fault ends it.
async fn join(mut client: TcpStream, mut server: TcpStream, mut faults: watch::Receiver<Fault>) {
    let (mut there, mut back) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut answered = 0;
    loop {
        let fault = *faults.borrow_and_update();
        if fault == Fault::Reset {
            break;
        }
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { break },
            read = client.read(&mut there) => {
                let Ok(count @ 1..) = read else { break };
                if pass(fault, &mut server, &there[..count], false, usize::MAX).await.is_none() { break }
            }
            read = server.read(&mut back) => {
                let Ok(count @ 1..) = read else { break };
                let left = match fault {
                    Fault::CutAfter(bytes) => bytes.saturating_sub(answered),
                    _ => usize::MAX,
                };
                answered += count;
                if pass(fault, &mut client, &back[..count], true, left).await.is_none() { break }
            }
        }
    }
    // With bytes unread or this set, the other side sees a reset and not an end.
    for stream in [&client, &server] {
        drop(stream.set_zero_linger());
    }
}

/// Passes one piece, or swallows it; nothing when the connection is over.
async fn pass(
    fault: Fault,
    to: &mut TcpStream,
    piece: &[u8],
    is_answer: bool,
    left: usize,
) -> Option<()> {
    match fault {
        Fault::BlackHole => return Some(()),
        Fault::HalfOpen if is_answer => return Some(()),
        Fault::Latency(time) => tokio::time::sleep(time).await,
        _ => {}
    }
    to.write_all(&piece[..piece.len().min(left)]).await.ok()?;
    (piece.len() < left).then_some(())
}
