//! The promises of the rate limit port.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use towpath_core::ErrorKind;
use towpath_core::limiter::{Amount, Policy};
use towpath_core::port::RateLimit;
use towpath_core::port::rate_limit::Take;

use crate::World;
use crate::world::assert_kind;

crate::promises! { RateLimit:
    many_takers_never_get_more_than_the_rule_allows;
    several_takes_are_all_or_none;
    a_peek_takes_nothing_and_a_reset_fills_up;
    retry_after_is_exact;
    an_impossible_amount_is_invalid;
    a_limit_is_remembered_across_reopen;
    no_stretch_of_time_admits_more_than_capacity_and_refill;
}

async fn limits(world: &mut World) -> Arc<dyn RateLimit> {
    world
        .backend()
        .await
        .rate_limit
        .expect("the row offers limits")
}

/// Refills so slowly that a case never sees it.
fn bucket(capacity: u64) -> Policy {
    Policy::TokenBucket {
        capacity: Amount::whole(capacity),
        refill: Amount::whole(1),
        period: Duration::from_secs(3600),
    }
}

fn window(limit: u64) -> Policy {
    Policy::SlidingWindow {
        limit: Amount::whole(limit),
        window: Duration::from_secs(3600),
    }
}

fn take(key: &str, policy: Policy, tokens: u64) -> Take {
    Take {
        key: key.to_owned(),
        policy,
        amount: Amount::whole(tokens),
    }
}

async fn many_takers_never_get_more_than_the_rule_allows(mut world: World) {
    let limits = limits(&mut world).await;
    for (key, policy) in [("bucket", bucket(20)), ("window", window(20))] {
        let mut takers = JoinSet::new();
        for _ in 0..60 {
            let limits = Arc::clone(&limits);
            takers.spawn(async move {
                limits.take(vec![take(key, policy, 1)]).await.expect("take")[0].allowed
            });
        }
        let allowed = takers
            .join_all()
            .await
            .into_iter()
            .filter(|allowed| *allowed)
            .count();
        assert_eq!(allowed, 20, "{key}");
    }
}

async fn several_takes_are_all_or_none(mut world: World) {
    let limits = limits(&mut world).await;
    let refused = limits
        .take(vec![
            take("a", bucket(5), 3),
            take("b", bucket(2), 2),
            take("a", bucket(5), 3),
        ])
        .await;
    let refused = refused.expect("take");
    assert!(refused.iter().any(|decision| !decision.allowed));
    for (key, capacity) in [("a", 5), ("b", 2)] {
        let left = limits
            .peek(key, bucket(capacity))
            .await
            .expect("peek")
            .remaining;
        assert_eq!(left, Amount::whole(capacity), "{key}: nothing was taken");
    }
    let allowed = limits
        .take(vec![take("a", bucket(5), 3), take("b", bucket(2), 2)])
        .await
        .expect("take");
    assert!(allowed.iter().all(|decision| decision.allowed));
}

async fn a_peek_takes_nothing_and_a_reset_fills_up(mut world: World) {
    let limits = limits(&mut world).await;
    limits
        .take(vec![take("a", window(3), 3)])
        .await
        .expect("take");
    for _ in 0..2 {
        assert_eq!(
            limits.peek("a", window(3)).await.expect("peek").remaining,
            Amount::whole(0)
        );
    }
    limits.reset("a").await.expect("reset");
    assert_eq!(
        limits.peek("a", window(3)).await.expect("peek").remaining,
        Amount::whole(3)
    );
}

async fn retry_after_is_exact(mut world: World) {
    let limits = limits(&mut world).await;
    let quick = Policy::TokenBucket {
        capacity: Amount::whole(1),
        refill: Amount::whole(5),
        period: Duration::from_secs(1),
    };
    limits.take(vec![take("a", quick, 1)]).await.expect("take");
    let refused = limits.take(vec![take("a", quick, 1)]).await.expect("take")[0];
    assert!(
        !refused.allowed
            && refused.retry_after > Duration::ZERO
            && refused.retry_after <= Duration::from_millis(200)
    );
    let began = Instant::now();
    tokio::time::sleep(refused.retry_after + Duration::from_millis(2)).await;
    let again = limits.take(vec![take("a", quick, 1)]).await.expect("take")[0];
    assert!(
        again.allowed,
        "refused after {:?}, as asked",
        began.elapsed()
    );
}

async fn an_impossible_amount_is_invalid(mut world: World) {
    let limits = limits(&mut world).await;
    assert_kind(
        limits.take(vec![take("a", bucket(5), 6)]).await,
        ErrorKind::Invalid,
    );
    assert_kind(
        limits.take(vec![take("", bucket(5), 1)]).await,
        ErrorKind::Invalid,
    );
}

async fn a_limit_is_remembered_across_reopen(mut world: World) {
    limits(&mut world)
        .await
        .take(vec![take("a", bucket(5), 4)])
        .await
        .expect("take");
    world.close().await;
    let limits = limits(&mut world).await;
    assert!(
        !limits
            .take(vec![take("a", bucket(5), 2)])
            .await
            .expect("take")[0]
            .allowed
    );
}

async fn no_stretch_of_time_admits_more_than_capacity_and_refill(mut world: World) {
    let limits = limits(&mut world).await;
    let policy = Policy::TokenBucket {
        capacity: Amount::whole(10),
        refill: Amount::whole(100),
        period: Duration::from_secs(1),
    };
    let began = Instant::now();
    let mut takers = JoinSet::new();
    for _ in 0..8 {
        let limits = Arc::clone(&limits);
        takers.spawn(async move {
            let mut admitted = Vec::new();
            while began.elapsed() < Duration::from_millis(600) {
                let asked = began.elapsed();
                if limits.take(vec![take("a", policy, 1)]).await.expect("take")[0].allowed {
                    admitted.push((asked, began.elapsed()));
                }
                tokio::task::yield_now().await;
            }
            admitted
        });
    }
    let admitted = takers.join_all().await.concat();
    // The takes that lie wholly between two moments, against the limit of that time.
    for (from, _) in &admitted {
        for (_, to) in &admitted {
            if to <= from {
                continue;
            }
            let within = admitted
                .iter()
                .filter(|(asked, answered)| asked >= from && answered <= to);
            // A millisecond more at each end: the limit's clock counts whole ones.
            let stretch = (*to - *from).as_millis() + 2;
            let allowance = 10 + stretch.div_ceil(10);
            let count = within.count() as u128;
            assert!(
                count <= allowance,
                "{count} in {stretch} ms, {allowance} allowed"
            );
        }
    }
    assert!(
        admitted.len() >= 30,
        "{} in all: it starves",
        admitted.len()
    );
}
