//! The promises of the key and value port.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use towpath_core::ErrorKind;
use towpath_core::port::Kv;
use towpath_core::port::kv::{Committed, Op};

use crate::World;
use crate::world::{assert_kind, until};

crate::promises! { Kv:
    puts_gets_and_deletes;
    several_ops_are_all_or_none;
    ops_of_one_commit_see_each_other;
    compares_before_it_swaps;
    one_of_many_puts_if_absent;
    a_counter_stays_within_its_bounds;
    fields_are_kept_apart_from_values;
    a_hash_changes_field_by_field_and_stays;
    a_key_expires_after_its_ttl;
    lists_keys_by_prefix_page_by_page;
    keeps_keys_across_reopen;
    a_sum_beyond_all_numbers_is_refused;
    bounds_hold_for_numbers_of_any_size;
    an_add_keeps_the_ttl;
    deleting_a_key_clears_its_ttl;
    an_expiry_needs_a_key;
}

async fn kv(world: &mut World) -> Arc<dyn Kv> {
    world.backend().await.kv.expect("the row offers keys")
}

fn add(delta: i64, min: i64, max: i64) -> Op {
    Op::Add {
        key: "stock".to_owned(),
        delta,
        min,
        max,
    }
}

async fn value(kv: &Arc<dyn Kv>, key: &str) -> Option<String> {
    kv.get(key)
        .await
        .expect("get")
        .map(|value| String::from_utf8_lossy(&value).into_owned())
}

async fn puts_gets_and_deletes(mut world: World) {
    let kv = kv(&mut world).await;
    assert_eq!(kv.get("a").await.expect("get"), None);
    let binary = Bytes::from_static(b"\0\xff");
    kv.put("a", binary.clone(), None).await.expect("put");
    assert_eq!(kv.get("a").await.expect("get"), Some(binary));
    assert_eq!(kv.ttl("a").await.expect("ttl"), Some(None));
    kv.delete("a").await.expect("delete");
    assert_eq!(
        (
            kv.get("a").await.expect("get"),
            kv.ttl("a").await.expect("ttl")
        ),
        (None, None)
    );
    assert_kind(kv.put("", Bytes::new(), None).await, ErrorKind::Invalid);
}

async fn several_ops_are_all_or_none(mut world: World) {
    let kv = kv(&mut world).await;
    kv.put("stock", "3".into(), None).await.expect("put");
    let put = |key: &str| Op::Put {
        key: key.to_owned(),
        value: "x".into(),
        ttl: None,
    };
    let refused = kv
        .commit(vec![put("a"), add(-4, 0, 100), put("b")])
        .await
        .expect("commit");
    assert_eq!(
        refused,
        Committed::Refused {
            index: 1,
            current: Some("3".into())
        }
    );
    assert_eq!(
        (value(&kv, "a").await, value(&kv, "stock").await.as_deref()),
        (None, Some("3"))
    );
    let applied = kv
        .commit(vec![put("a"), add(-3, 0, 100), put("b")])
        .await
        .expect("commit");
    assert_eq!(
        applied,
        Committed::Applied(vec![Some("x".into()), Some("0".into()), Some("x".into())])
    );
}

async fn ops_of_one_commit_see_each_other(mut world: World) {
    let kv = kv(&mut world).await;
    let applied = kv
        .commit(vec![add(5, 0, 9), add(4, 0, 9), add(-2, 0, 9)])
        .await
        .expect("commit");
    assert_eq!(
        applied,
        Committed::Applied(vec![Some("5".into()), Some("9".into()), Some("7".into())])
    );
}

async fn compares_before_it_swaps(mut world: World) {
    let kv = kv(&mut world).await;
    let swap = |expected: Option<&'static str>, value: &'static str| Op::CompareAndSwap {
        key: "a".to_owned(),
        expected: expected.map(Bytes::from),
        value: value.into(),
        ttl: None,
    };
    assert!(matches!(
        kv.commit(vec![swap(None, "1")]).await.expect("commit"),
        Committed::Applied(_)
    ));
    let refused = kv.commit(vec![swap(None, "2")]).await.expect("commit");
    assert_eq!(
        refused,
        Committed::Refused {
            index: 0,
            current: Some("1".into())
        }
    );
    assert!(matches!(
        kv.commit(vec![swap(Some("1"), "2")]).await.expect("commit"),
        Committed::Applied(_)
    ));
    assert_eq!(value(&kv, "a").await.as_deref(), Some("2"));
}

async fn one_of_many_puts_if_absent(mut world: World) {
    let kv = kv(&mut world).await;
    let mut racers = JoinSet::new();
    for number in 0..100 {
        let kv = Arc::clone(&kv);
        racers.spawn(async move {
            kv.put_if_absent("won", number.to_string().into(), None)
                .await
                .expect("put")
        });
    }
    assert_eq!(
        racers
            .join_all()
            .await
            .into_iter()
            .filter(|won| *won)
            .count(),
        1
    );
}

async fn a_counter_stays_within_its_bounds(mut world: World) {
    let kv = kv(&mut world).await;
    kv.put("stock", "50".into(), None).await.expect("put");
    let mut takers = JoinSet::new();
    for _ in 0..80 {
        let kv = Arc::clone(&kv);
        takers.spawn(async move {
            matches!(
                kv.commit(vec![add(-1, 0, i64::MAX)]).await,
                Ok(Committed::Applied(_))
            )
        });
    }
    assert_eq!(
        takers
            .join_all()
            .await
            .into_iter()
            .filter(|taken| *taken)
            .count(),
        50
    );
    assert_eq!(value(&kv, "stock").await.as_deref(), Some("0"));
    kv.put("stock", "many".into(), None).await.expect("put");
    assert_kind(kv.commit(vec![add(1, 0, 9)]).await, ErrorKind::Invalid);
}

async fn fields_are_kept_apart_from_values(mut world: World) {
    let kv = kv(&mut world).await;
    let set = |key: &str, field: &str| Op::SetField {
        key: key.to_owned(),
        field: field.to_owned(),
        value: "x".into(),
    };
    kv.commit(vec![set("hash", "b"), set("hash", "a")])
        .await
        .expect("commit");
    let names: Vec<String> = kv
        .fields("hash")
        .await
        .expect("fields")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_kind(kv.get("hash").await, ErrorKind::Invalid);
    kv.put("value", "x".into(), None).await.expect("put");
    assert_kind(kv.commit(vec![set("value", "a")]).await, ErrorKind::Invalid);
    assert!(kv.fields("absent").await.expect("fields").is_empty());
}

async fn a_hash_changes_field_by_field_and_stays(mut world: World) {
    let set = |field: &str, value: &'static str| Op::SetField {
        key: "hash".to_owned(),
        field: field.to_owned(),
        value: value.into(),
    };
    let expire = |seconds: Option<u64>| Op::Expire {
        key: "hash".to_owned(),
        ttl: seconds.map(Duration::from_secs),
    };
    let delete = Op::Delete {
        key: "hash".to_owned(),
    };
    let steps = [
        (vec![set("a", "1"), set("b", "1")], "a1 b1", false),
        (vec![set("b", "2")], "a1 b2", false),
        (vec![expire(Some(600)), set("c", "1")], "a1 b2 c1", true),
        (
            vec![set("c", "2"), expire(None), set("c", "3")],
            "a1 b2 c3",
            false,
        ),
        (vec![set("d", "1"), delete, set("a", "2")], "a2", false),
        (vec![expire(Some(600))], "a2", true),
    ];
    for (ops, expected, mortal) in steps {
        let before = kv(&mut world).await;
        let applied = before.commit(ops.clone()).await.expect("commit");
        assert_eq!(applied, Committed::Applied(vec![None; ops.len()]));
        // Now, and as it is read back.
        for _ in 0..2 {
            let kv = kv(&mut world).await;
            let fields = kv.fields("hash").await.expect("fields");
            let actual: Vec<String> = fields
                .into_iter()
                .map(|(name, value)| name + &String::from_utf8_lossy(&value))
                .collect();
            assert_eq!(actual.join(" "), expected);
            let ttl = kv.ttl("hash").await.expect("ttl").expect("it is there");
            assert_eq!(ttl.is_some(), mortal, "{expected}");
            world.close().await;
        }
    }
}

async fn a_key_expires_after_its_ttl(mut world: World) {
    let kv = kv(&mut world).await;
    assert!(
        kv.put_if_absent("short", "x".into(), Some(Duration::from_millis(300)))
            .await
            .expect("put")
    );
    assert!(
        !kv.put_if_absent("short", "y".into(), None)
            .await
            .expect("put"),
        "it is still there"
    );
    let left = kv
        .ttl("short")
        .await
        .expect("ttl")
        .flatten()
        .expect("a ttl");
    assert!(left <= Duration::from_millis(300));
    until("the key to go", || async {
        kv.get("short").await.expect("get").is_none()
    })
    .await;
    assert!(
        kv.put_if_absent("short", "z".into(), None)
            .await
            .expect("put")
    );
}

async fn lists_keys_by_prefix_page_by_page(mut world: World) {
    let kv = kv(&mut world).await;
    for key in ["stock:b", "stock:a", "stock:c", "other", "stocks"] {
        kv.put(key, "x".into(), None).await.expect("put");
    }
    let first = kv.keys("stock:", None, 2).await.expect("keys");
    assert_eq!(first, ["stock:a", "stock:b"]);
    assert_eq!(
        kv.keys("stock:", Some(&first[1]), 2).await.expect("keys"),
        ["stock:c"]
    );
}

async fn keeps_keys_across_reopen(mut world: World) {
    let before = kv(&mut world).await;
    before
        .put("a", "x".into(), Some(Duration::from_secs(600)))
        .await
        .expect("put");
    before.put("gone", "x".into(), None).await.expect("put");
    before.delete("gone").await.expect("delete");
    world.close().await;
    let kv = kv(&mut world).await;
    assert_eq!(
        (value(&kv, "a").await.as_deref(), value(&kv, "gone").await),
        (Some("x"), None)
    );
    assert!(kv.ttl("a").await.expect("ttl").flatten().is_some());
}

async fn a_sum_beyond_all_numbers_is_refused(mut world: World) {
    let kv = kv(&mut world).await;
    let most = i64::MAX.to_string();
    kv.put("stock", most.clone().into(), None)
        .await
        .expect("put");
    let refused = kv
        .commit(vec![add(1, i64::MIN, i64::MAX)])
        .await
        .expect("commit");
    let current = Some(most.into());
    assert_eq!(refused, Committed::Refused { index: 0, current });
}

async fn bounds_hold_for_numbers_of_any_size(mut world: World) {
    let kv = kv(&mut world).await;
    for (delta, min, max, becomes) in [
        (-7, i64::MIN, i64::MAX, Some("-7")),
        (1, -9, i64::MIN, None),
        (7, i64::MIN, i64::MAX, Some("0")),
        (1_000_000_000_000_000, 0, i64::MAX, Some("1000000000000000")),
        (1, 0, 1_000_000_000_000_000, None),
        (1, 0, i64::MAX, Some("1000000000000001")),
        (-1_000_000_000_000_002, 0, i64::MAX, None),
        (-1_000_000_000_000_002, -1, i64::MAX, Some("-1")),
    ] {
        let committed = kv.commit(vec![add(delta, min, max)]).await.expect("commit");
        match becomes {
            Some(sum) => assert_eq!(committed, Committed::Applied(vec![Some(sum.into())])),
            None => assert!(matches!(committed, Committed::Refused { index: 0, .. })),
        }
    }
}

async fn deleting_a_key_clears_its_ttl(mut world: World) {
    let kv = kv(&mut world).await;
    kv.put("stock", "1".into(), Some(Duration::from_secs(600)))
        .await
        .expect("put");
    let key = "stock".to_owned();
    kv.commit(vec![Op::Delete { key }, add(1, 0, 9)])
        .await
        .expect("commit");
    assert_eq!(value(&kv, "stock").await.as_deref(), Some("1"));
    assert_eq!(kv.ttl("stock").await.expect("ttl"), Some(None));
}

async fn an_add_keeps_the_ttl(mut world: World) {
    let kv = kv(&mut world).await;
    kv.put("stock", "1".into(), Some(Duration::from_secs(600)))
        .await
        .expect("put");
    kv.commit(vec![add(1, 0, 9)]).await.expect("commit");
    assert!(kv.ttl("stock").await.expect("ttl").flatten().is_some());
    kv.put("stock", "1".into(), None).await.expect("put");
    assert_eq!(kv.ttl("stock").await.expect("ttl"), Some(None));
}

async fn an_expiry_needs_a_key(mut world: World) {
    let kv = kv(&mut world).await;
    let expire = |ttl| Op::Expire {
        key: "a".to_owned(),
        ttl,
    };
    let refused = kv.commit(vec![expire(None)]).await.expect("commit");
    let (index, current) = (0, None);
    assert_eq!(refused, Committed::Refused { index, current });
    kv.put("a", "x".into(), None).await.expect("put");
    kv.commit(vec![expire(Some(Duration::from_millis(1)))])
        .await
        .expect("commit");
    until("the key to go", || async {
        kv.get("a").await.expect("get").is_none()
    })
    .await;
}
