//! `towpath job worker`.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use towpath::pump::{
    Alone, Condition, Destination, Handler, Handling, PATIENCE, Pump, PumpMetrics, Side, Work,
};
use towpath::sink::CommandSink;
use towpath::supervisor::{OnFailure, Stage, Supervisor};
use towpath_core::port::queue::{Settings, check_lease};
use towpath_core::{Clock, QueueName, SystemClock};
use tracing::{info, warn};

use super::super::client::{Client, queue_path};
use super::super::signals::Signals;
use super::super::{Exit, Failure, Global, output};
use super::WorkerArgs;
use super::consumer::ApiConsumer;
use crate::admin::QueueStats;
use crate::stores::UNLOGGED;
use crate::telemetry::init_logs;

pub(super) async fn run(global: &Global, args: WorkerArgs) -> Result<Exit, Failure> {
    let queue = QueueName::new(&args.queue)?;
    let lease = positive("--lease", args.lease)?;
    check_lease(lease)?;
    let timeout = positive("--timeout", args.timeout)?;
    let loaded = global.load()?;
    let drain = loaded.config.drain;
    let colour = output::is_coloured(&std::io::stderr());
    init_logs(
        loaded.config.log_format.parse()?,
        &loaded.config.log_level,
        colour,
        UNLOGGED,
    )?;
    let signals = Signals::install(drain)?;
    let path = queue_path(queue.as_str(), "")?;
    let client = Client::new(global)?;
    let base = client.base().to_owned();
    // A queue that does not exist is a misspelled name more often than a worker that is early.
    let stats: QueueStats = client.get(&path).await?;
    let settings = stats.settings.unwrap_or_default();
    let retry = Settings::try_from(settings)?.retry;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let consumer = Arc::new(ApiConsumer::new(client, queue.clone(), path, lease));
    let shell = ["sh", "-c", &args.exec].map(str::to_owned).into();
    let program = args.exec.clone();
    let destination = |_| {
        let observer = move |change: towpath::pump::Change| match change.to {
            Condition::Paused => {
                warn!(program, problem = change.problem, "program paused");
            }
            _ => info!(program, "program resumed"),
        };
        let patience = retry.span().max(PATIENCE);
        Destination::new(
            "program",
            retry,
            patience,
            Arc::clone(&clock),
            Arc::new(observer),
        )
    };
    let sink = CommandSink::new(shell, timeout, destination)?.passing(&["*".to_owned()]);
    let handler: Arc<dyn Handler> = Arc::new(sink);
    let work = Work::Messages(Handling {
        handler,
        in_flight: usize::from(args.concurrency),
        alone: Alone::default(),
    });
    let mut supervisor = Supervisor::new(drain);
    let name = queue.to_string();
    info!(
        queue = name,
        server = base,
        concurrency = args.concurrency,
        "worker started"
    );
    supervisor.start(
        "job worker",
        Stage::Deliver,
        OnFailure::EndProcess,
        move |stop| {
            let pump = Pump {
                consumer: Arc::clone(&consumer) as Arc<_>,
                work: work.clone(),
                sink_name: "command",
                retry,
                pause: Duration::ZERO,
                metrics: PumpMetrics::new(Arc::new(()), &name, Arc::clone(&clock)),
                condition: Box::new(|side, error| {
                    if let (Side::Consumer, Some(error)) = (side, error) {
                        warn!(error, "worker cannot lease; retrying");
                    }
                }),
            };
            let work = work.clone();
            async move {
                pump.run(&stop).await?;
                work.close().await
            }
        },
    );
    let (first, second) = signals.first_and_second();
    let report = supervisor.run(first, second, || ()).await;
    if let Some(failure) = &report.failure {
        return Err(Failure::failed(failure.clone()));
    }
    info!("worker stopped");
    Ok(match report.is_clean() {
        true => Exit::Ok,
        false => Exit::Failed,
    })
}

fn positive(option: &str, duration: SignedDuration) -> Result<Duration, Failure> {
    let positive = Duration::try_from(duration)
        .ok()
        .filter(|one| !one.is_zero());
    positive.ok_or_else(|| {
        let text = format!("`{option}` is `{duration:#}`; it must be longer than `0s`");
        Failure::new(Exit::Usage, text)
    })
}
