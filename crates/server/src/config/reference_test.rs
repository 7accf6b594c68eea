//! Defaults of the reference system.

use super::load;
use super::tests::sources;
use crate::wiring;

fn origins(env: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut all = sources("", env);
    all.stores = wiring::STORES;
    let loaded = load(&all).unwrap();
    [
        "backends.orders",
        "backends.orders_kv",
        "accounts.database",
        "backends.relay",
        "backends.fleet",
    ]
    .map(|key| {
        let setting = &loaded.settings[key];
        let text = setting.text.clone().unwrap_or_default();
        (text, setting.origin.to_string())
    })
    .to_vec()
}

#[test]
fn one_setting_selects_the_defaults_of_the_reference_system() {
    assert!(origins(&[]).iter().all(|(text, _)| text.is_empty()));
    let all = origins(&[("TOWPATH_REFERENCE", "1")]);
    let texts: Vec<&str> = all.iter().map(|(text, _)| &**text).collect();
    assert_eq!(texts[0], "amqp://guest:guest@localhost:5672/");
    assert_eq!(texts[1], "redis://localhost:6379/0");
    assert!(texts[2].starts_with("postgres://postgres:postgres@localhost:5432/outbox_db"));
    assert_eq!(texts[3], "kafka://localhost:9092");
    // Values that are set stay.
    let all = origins(&[
        ("TOWPATH_REFERENCE", "1"),
        ("REDIS_HOST", "other"),
        ("DB_NAME", "x"),
    ]);
    assert_eq!(all[1].0, "redis://localhost:6379/0");
    assert_eq!(all[4].0, "redis://other:6379/0");
    assert!(all[2].0.ends_with("/x?sslmode=disable"), "{}", all[2].0);
}

#[test]
fn an_address_may_name_a_port_alone() {
    assert_eq!(
        origins(&[("REDIS_ADDR", ":6380")])[1].0,
        "redis://localhost:6380/0"
    );
    let all = origins(&[("REDIS_ADDR", ":6380"), ("REDIS_DB", "2")]);
    assert_eq!(all[4].0, "redis://localhost:6380/2");
}
