//! A limit that all processes on the store share: `cargo run --example rate_limit`.

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::time::Duration;

use towpath::Engine;
use towpath::limit::{Amount, Policy};

#[tokio::main]
async fn main() -> towpath::Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = Engine::open(&format!("embedded:{}", folder.path().display())).await?;
    let requests = engine.limiter(Policy::TokenBucket {
        capacity: Amount::whole(5),
        refill: Amount::whole(1),
        period: Duration::from_secs(60),
    })?;
    for request in 1..=6 {
        let decision = requests.take("203.0.113.7", 1).await?;
        match decision.allowed {
            true => println!("{request}: allowed, {} left", decision.remaining.as_f64()),
            false => println!("{request}: refused, wait {:.0?}", decision.retry_after),
        }
    }
    engine.close().await
}
