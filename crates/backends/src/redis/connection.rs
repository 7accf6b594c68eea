//! The shared connection of one server: dialled on demand, dropped when it breaks, redialled with backoff and jitter.
//!
//! Commands of many callers share it, so it carries no blocking commands; a
//! blocking command gets its own connection from [`NodeConnection::dial`]. Nothing is sent a
//! second time here: only callers know which commands are safe to repeat.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, TlsCertificates, Value,
};
use tokio::sync::Mutex;
use tokio::time::Instant;
use towpath_core::{Error, Result, ResultExt};

use super::config::{Address, Config};
use super::{error, reply};

/// Bounds of the pause between attempts to connect: doubled, with full jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Longest time for an attempt to connect.
const CONNECT: Duration = Duration::from_secs(2);

/// The oldest version with the commands that the scripts use.
const OLDEST: (u32, u32) = (6, 2);

/// Target of a connection.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Address(Address),
    /// The current master of this name.
    Master {
        sentinels: Vec<Address>,
        name: String,
    },
}

/// The connection to one server.
pub(super) struct NodeConnection {
    config: Arc<Config>,
    target: Target,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    /// Number of the connection; a broken one is dropped by its number, so that its successor stays.
    made: u64,
    failures: u32,
    /// No attempt before this time, and the last error.
    pause: Option<(Instant, String)>,
}

impl NodeConnection {
    pub(super) fn new(config: Arc<Config>, target: Target) -> Self {
        Self {
            config,
            target,
            state: Mutex::default(),
        }
    }

    /// Name of the server in messages.
    pub(super) fn name(&self) -> String {
        match &self.target {
            Target::Address(address) => address.to_string(),
            Target::Master { name, .. } => name.clone(),
        }
    }

    /// Its host.
    pub(super) fn host(&self) -> String {
        match &self.target {
            Target::Address(address) => address.host.clone(),
            Target::Master { name, .. } => name.clone(),
        }
    }

    /// Sends a command once. The outer error means that no connection was open, and nothing was sent.
    pub(super) async fn send(&self, cmd: &Cmd) -> Result<std::result::Result<Value, RedisError>> {
        let (number, mut connection) = self.connection().await?;
        let answer = cmd.query_async::<Value>(&mut connection).await;
        if let Err(error) = &answer
            && error::breaks_connection(error)
        {
            self.drop_connection(number).await;
        }
        Ok(answer)
    }

    /// Sends a command once.
    pub(super) async fn query(&self, cmd: &Cmd) -> Result<Value> {
        self.send(cmd)
            .await?
            .map_err(|error| error::of_command(&self.name(), cmd, error))
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection)> {
        let mut state = self.state.lock().await;
        if let Some(connection) = &state.connection {
            return Ok((state.made, connection.clone()));
        }
        if let Some((until, reason)) = &state.pause
            && Instant::now() < *until
        {
            return Err(Error::unavailable(reason.clone()));
        }
        match self.dial(self.config.timeout).await {
            Ok(connection) => {
                if state.failures > 0 {
                    tracing::info!(server = self.name(), "redis available again");
                }
                state.made += 1;
                state.failures = 0;
                state.pause = None;
                state.connection = Some(connection.clone());
                Ok((state.made, connection))
            }
            Err(error) => {
                let longest = FIRST_PAUSE
                    .saturating_mul(1 << state.failures.min(10))
                    .min(LONGEST_PAUSE);
                let pause = longest.mul_f64(rand::rng().random_range(0.0..=1.0));
                if state.failures == 0 {
                    tracing::warn!(
                        server = self.name(),
                        error = error.chain(),
                        "redis unavailable; retrying"
                    );
                }
                state.failures += 1;
                state.pause = Some((Instant::now() + pause, error.chain()));
                Err(error)
            }
        }
    }

    pub(super) async fn is_connected(&self) -> bool {
        self.state.lock().await.connection.is_some()
    }

    async fn drop_connection(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.made == number {
            state.connection = None;
        }
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        self.state.lock().await.connection = None;
    }

    /// A new connection with this response timeout.
    pub(super) async fn dial(&self, timeout: Duration) -> Result<MultiplexedConnection> {
        let address = match &self.target {
            Target::Address(address) => address.clone(),
            Target::Master { sentinels, name } => self.master_of(sentinels, name).await?,
        };
        let account = self.account(
            self.config.username.as_deref(),
            self.config.password.as_deref(),
            i64::from(self.config.database),
        );
        let mut connection = self.open(&address, account, timeout).await?;
        let info = redis::cmd("INFO")
            .arg("server")
            .query_async::<Value>(&mut connection)
            .await
            .map_err(|error| error::of_connection(&self.name(), error))?;
        check_version(&reply::text(info)?)
            .context(|| format!("connect to redis at `{address}`"))?;
        Ok(connection)
    }

    fn account(
        &self,
        user: Option<&str>,
        password: Option<&str>,
        database: i64,
    ) -> RedisConnectionInfo {
        let mut account = RedisConnectionInfo::default()
            .set_db(database)
            .set_lib_name("towpath", env!("CARGO_PKG_VERSION"));
        if let Some(user) = user {
            account = account.set_username(user);
        }
        if let Some(password) = password {
            account = account.set_password(password);
        }
        account
    }

    async fn open(
        &self,
        address: &Address,
        account: RedisConnectionInfo,
        timeout: Duration,
    ) -> Result<MultiplexedConnection> {
        let unreachable = |error| error::of_connection(&address.to_string(), error);
        let Address { host, port } = address.clone();
        let addr = if self.config.tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let info = addr
            .into_connection_info()
            .map_err(unreachable)?
            .set_redis_settings(account);
        let client = match &self.config.tls_ca {
            Some(path) if self.config.tls => {
                let root_cert = tokio::fs::read(path).await.map_err(|error| {
                    Error::invalid(format!("`tls_ca={}` cannot be read", path.display()))
                        .with_source(error)
                })?;
                let certificates = TlsCertificates {
                    client_tls: None,
                    root_cert: Some(root_cert),
                };
                Client::build_with_tls(info, certificates)
            }
            _ => Client::open(info),
        }
        .map_err(unreachable)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT.min(self.config.timeout)))
            .set_response_timeout(Some(timeout));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(unreachable)
    }

    /// Asks the sentinels in order, until one knows the master.
    async fn master_of(&self, sentinels: &[Address], name: &str) -> Result<Address> {
        let mut last = Error::unavailable(format!("no sentinel knows a master `{name}`"));
        for sentinel in sentinels {
            match self.ask(sentinel, name).await {
                Ok(Some(address)) => return Ok(address),
                Ok(None) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(&self, sentinel: &Address, name: &str) -> Result<Option<Address>> {
        let account = self.account(None, self.config.sentinel_password.as_deref(), 0);
        let mut connection = self.open(sentinel, account, self.config.timeout).await?;
        let answer = redis::cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(name)
            .query_async::<Value>(&mut connection)
            .await
            .map_err(|error| error::of_connection(&sentinel.to_string(), error))?;
        if answer == Value::Nil {
            return Ok(None);
        }
        let [host, port] = reply::tuple(answer)?;
        let port = u16::try_from(reply::number(port)?).map_err(|error| {
            Error::corrupt("a sentinel answered without a port").with_source(error)
        })?;
        Ok(Some(Address {
            host: reply::text(host)?,
            port,
        }))
    }
}

/// The value of a line of `INFO`.
pub(super) fn info_line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}

fn check_version(info: &str) -> Result<()> {
    let version = info_line(info, "redis_version").unwrap_or_default();
    let mut parts = version
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < OLDEST {
        return Err(Error::unsupported(format!(
            "redis {version} is too old; {}.{} or newer is needed",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_is_refused() {
        assert!(check_version("# Server\r\nredis_version:6.2.0\r\n").is_ok());
        assert!(check_version("# Server\r\nredis_version:7.0.15\r\n").is_ok());
        assert!(check_version("# Server\r\nredis_version:10.0.0\r\n").is_ok());
        let error = check_version("# Server\r\nredis_version:6.0.16\r\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "redis 6.0.16 is too old; 6.2 or newer is needed"
        );
    }
}
