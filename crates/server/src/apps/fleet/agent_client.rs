//! The agent's HTTP client: deadlines, bounded answers, `Retry-After`, and the name of this process.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::StatusCode;
use reqwest::{Client, RequestBuilder, Url};
use serde::de::DeserializeOwned;
use towpath_core::{Error, Result, SystemClock};
use uuid::Uuid;

use super::envelope::data;
use super::identity::INSTANCE;
use towpath::net::answer::{no_answer, retry_after};

/// Most bytes of an answer.
const ANSWER_BYTES: usize = 4 << 20;

/// The longest `Retry-After` that is obeyed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Sends the requests of one run of an agent.
pub(super) struct AgentClient {
    client: Client,
    timeout: Duration,
    clock: SystemClock,
    /// Differs between two processes, even if they say the same of themselves.
    instance: String,
}

/// An answer, read to its end.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

impl AgentClient {
    /// A client whose requests take at most `timeout`.
    ///
    /// # Errors
    /// `Invalid` when the client cannot be made.
    pub(super) fn new(timeout: Duration) -> Result<Self> {
        let client = towpath::net::client().connect_timeout(timeout).build();
        let client = client.map_err(|error| {
            Error::invalid("the agent's client cannot be made").with_source(error)
        })?;
        Ok(Self {
            client,
            timeout,
            clock: SystemClock::new(),
            instance: Uuid::now_v7().to_string(),
        })
    }

    /// Begins a request.
    pub(super) fn request(&self, method: reqwest::Method, url: &str) -> RequestBuilder {
        let request = self.client.request(method, url);
        request.header(INSTANCE, &self.instance)
    }

    /// Sends a request that the server may hold for `wait`.
    pub(super) async fn send(&self, request: RequestBuilder, wait: Duration) -> Result<Answered> {
        let request = request.timeout(self.timeout + wait);
        let mut response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        let after = retry_after(response.headers(), &self.clock);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err(Error::unavailable(format!(
                    "an answer of over {ANSWER_BYTES} bytes"
                )));
            }
        }
        Ok(Answered {
            status,
            retry_after: after.map(|after| after.min(LONGEST_PAUSE)),
            body,
        })
    }

    /// The address of this machine from which a URL is reached.
    ///
    /// # Errors
    /// `Unavailable` when the URL's host cannot be resolved or reached.
    pub(super) async fn own_address(&self, url: &str) -> Result<IpAddr> {
        let unreachable = |error: std::io::Error| {
            Error::unavailable(format!("no route to `{url}`")).with_source(error)
        };
        let wrong = || Error::invalid(format!("`{url}` has no host and port"));
        let parsed = Url::parse(url).map_err(|_| wrong())?;
        let host = parsed.host_str().ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = parsed.port_or_known_default().ok_or_else(wrong)?;
        let found = tokio::net::lookup_host((host, port));
        let found = tokio::time::timeout(self.timeout, found).await;
        let found = found.unwrap_or_else(|late| Err(late.into()));
        let mut last = Err(wrong());
        for address in found.map_err(unreachable)? {
            last = towards(address).await.map_err(unreachable);
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

/// The local address of a route; a UDP socket finds it without sending anything.
async fn towards(address: SocketAddr) -> std::io::Result<IpAddr> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

impl Answered {
    /// The data of the answer; anything else is an error, with the pause that the server asked for.
    pub(super) fn data<T: DeserializeOwned>(&self) -> Result<T> {
        data(self.status, &self.body).map_err(|error| match self.retry_after {
            Some(after) if !self.status.is_success() => Error::overloaded(error.chain(), after),
            _ => error,
        })
    }
}
