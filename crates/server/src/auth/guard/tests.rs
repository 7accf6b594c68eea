//! Every route with every kind of credential.

use http::{Method, Request};
use towpath_core::{ManualClock, Timestamp};

use super::*;
use crate::auth::file::change;
use crate::auth::jwt::tests::{Provider, verifier};
use crate::auth::key::Key;
use crate::documents::Part;
use crate::http::{ClientCertificate, Hosts};

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const LATER: Timestamp = Timestamp::from_millis(2_000_000);

const PARTS: [Part; 8] = [
    Part::Ingest,
    Part::Orders,
    Part::Stock,
    Part::Dashboard,
    Part::Lines,
    Part::Accounts,
    Part::Controller,
    Part::Worker,
];

/// Credentials of every kind, and the guard that knows them.
struct Setup {
    guard: Guard,
    admin: String,
    expired: String,
    revoked: String,
    unscoped: String,
    provider: Provider,
}

/// Tokens of the identity provider.
struct Tokens {
    admin: String,
    expired: String,
    unscoped: String,
    /// For another audience.
    other: String,
}

impl Tokens {
    fn of(provider: &Provider) -> Self {
        Self {
            admin: provider.issue("towpath", "openid admin", LATER),
            expired: provider.issue("towpath", "admin", NOW),
            unscoped: provider.issue("towpath", "queue:none:lease", LATER),
            other: provider.issue("another", "admin", LATER),
        }
    }
}

fn setup(mode: Mode) -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let make = |scope: &str, expires| {
        let scopes = vec![scope.parse().expect("a scope")];
        let (key, text) = Key::make("test".to_owned(), scopes, NOW, expires).expect("a key");
        let kept = change(&path, |keys| {
            keys.push(key);
            Ok(())
        });
        kept.expect("kept");
        text
    };
    let (admin, unscoped) = (make("admin", None), make("queue:none:lease", None));
    let expired = make("admin", Some(LATER));
    let revoked = make("admin", None);
    let (id, _) = key::parse(&revoked).expect("a key");
    let removed = change(&path, |keys| {
        keys.retain(|key| key.id != id);
        Ok(())
    });
    removed.expect("removed");
    for (certificate, scope, expires) in [
        ("admin.test", "admin", None),
        ("expired.test", "admin", Some(LATER)),
        ("unscoped.test", "queue:none:lease", None),
    ] {
        let scopes = vec![scope.parse().expect("a scope")];
        let name = "certificate".to_owned();
        let key = Key::of_certificate(certificate.to_owned(), name, scopes, NOW, expires);
        let kept = change(&path, |keys| {
            keys.push(key?);
            Ok(())
        });
        kept.expect("kept");
    }
    let provider = Provider::new();
    let keys = KeyFile::open(path).expect("a key file");
    let sites = Sites::new(Hosts::new(":8080", "server.hosts", &[]), Vec::new());
    let clock = Arc::new(ManualClock::at(LATER));
    let guard = Guard::new(
        mode,
        (keys, Token::new("the-token"), Some(verifier(&provider))),
        sites,
        clock,
        Trail::new().0,
    );
    Setup {
        guard,
        provider,
        admin,
        expired,
        revoked,
        unscoped,
    }
}

fn head(method: &Method, path: &str, peer: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (mut head, ()) = request.body(()).expect("a request").into_parts();
    let peer = format!("{peer}:5000").parse().expect("an address");
    head.extensions.insert(Peer(peer));
    head
}

/// Answers to clients without a valid key, from another machine and from this one.
fn expected(access: Access, mode: Mode) -> (u16, u16) {
    match (access, mode) {
        (Access::Open | Access::App(_), _)
        | (Access::Contract(_), Mode::Auto | Mode::Off)
        | (Access::Own(_), Mode::Off) => (200, 200),
        (Access::Own(_), Mode::Auto) => (401, 200),
        _ => (401, 401),
    }
}

/// Every route of every listener with every kind of credential, from here and elsewhere, in every mode.
#[test]
fn routes_are_open_to_those_who_may_use_them() {
    for mode in [Mode::Auto, Mode::On, Mode::Off] {
        let setup = setup(mode);
        let tokens = Tokens::of(&setup.provider);
        for table in [Table::of(&PARTS), Table::admin()] {
            for (method, route, access) in table.rows() {
                let method: Method = method.parse().expect("a method");
                let status = |peer: &str, headers: &[(&str, &str)]| {
                    let head = head(&method, route, peer, headers);
                    match setup.guard.check(&table, route, &head) {
                        Ok(_) => 200,
                        Err(problem) => problem.status().as_u16(),
                    }
                };
                let what = format!("{mode:?} {method} {route} {access:?}");
                let (elsewhere, here) = expected(access, mode);
                let (away, loopback) = ("192.0.2.7", "127.0.0.1");
                assert_eq!(status(away, &[]), elsewhere, "{what}");
                assert_eq!(status(loopback, &[]), here, "{what}");
                // No proof of this machine.
                for header in [
                    ("origin", "http://evil.example"),
                    ("sec-fetch-site", "cross-site"),
                    ("x-forwarded-for", "192.0.2.7"),
                    ("forwarded", "for=192.0.2.7"),
                ] {
                    assert_eq!(status(loopback, &[header]), elsewhere, "{what} {header:?}");
                }
                let is_open = access == Access::Open;
                for (name, form) in [("authorization", "Bearer "), ("x-api-key", "")] {
                    let with = |key: &str| {
                        let value = format!("{form}{key}");
                        [away, loopback].map(|peer| status(peer, &[(name, value.as_str())]))
                    };
                    let or_open = |status| if is_open { [200; 2] } else { [status; 2] };
                    assert_eq!(with(&setup.admin), [200; 2], "{what}");
                    assert_eq!(with("the-token"), [200; 2], "{what}");
                    for key in [&setup.expired, &setup.revoked] {
                        assert_eq!(with(key), or_open(401), "{what}");
                    }
                    assert_eq!(with(&format!("{}x", setup.admin)), or_open(401), "{what}");
                    assert_eq!(with(&setup.unscoped), or_open(403), "{what}");
                    // A credential of another system counts as none.
                    for another in ["another", &tokens.other] {
                        assert_eq!(with(another), [elsewhere, here], "{what}");
                    }
                    assert_eq!(with(&tokens.admin), [200; 2], "{what}");
                    assert_eq!(with(&tokens.expired), or_open(401), "{what}");
                    assert_eq!(with(&tokens.unscoped), or_open(403), "{what}");
                }
                let or_open = |status| if is_open { 200 } else { status };
                let shown = |peer: &str, name: &str, headers: &[(&str, &str)]| {
                    let mut head = head(&method, route, peer, headers);
                    let certificate = ClientCertificate::new(["another name", name]);
                    head.extensions.insert(certificate);
                    match setup.guard.check(&table, route, &head) {
                        Ok(_) => 200,
                        Err(problem) => problem.status().as_u16(),
                    }
                };
                assert_eq!(shown(away, "admin.test", &[]), 200, "{what}");
                assert_eq!(shown(away, "expired.test", &[]), or_open(401), "{what}");
                assert_eq!(shown(away, "unscoped.test", &[]), or_open(403), "{what}");
                assert_eq!(shown(away, "unknown.test", &[]), elsewhere, "{what}");
                assert_eq!(shown(loopback, "unknown.test", &[]), here, "{what}");
                // A browser shows the certificate to whichever page asks.
                let page = [("origin", "http://evil.example")];
                assert_eq!(shown(away, "admin.test", &page), elsewhere, "{what}");
                // A key that was sent goes before the certificate.
                let wrong = [("x-api-key", setup.revoked.as_str())];
                assert_eq!(shown(away, "admin.test", &wrong), or_open(401), "{what}");
            }
        }
    }
}

#[test]
fn scopes_of_queues_name_which() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let scopes = vec!["queue:mail-1:admin".parse().expect("a scope")];
    let (key, text) = Key::make("test".to_owned(), scopes, NOW, None).expect("a key");
    change(&path, |keys| {
        keys.push(key);
        Ok(())
    })
    .expect("kept");
    let keys = KeyFile::open(path).expect("a key file");
    let sites = Sites::new(Hosts::new(":8080", "server.hosts", &[]), Vec::new());
    let clock = Arc::new(ManualClock::at(NOW));
    let guard = Guard::new(
        Mode::Auto,
        (keys, Token::new("the-token"), None),
        sites,
        clock,
        Trail::new().0,
    );
    let table = Table::admin();
    let status = |route: &str, path: &str| {
        let bearer = format!("Bearer {text}");
        let headers = [("authorization", bearer.as_str())];
        let head = head(&Method::POST, path, "192.0.2.7", &headers);
        guard
            .check(&table, route, &head)
            .map_err(|problem| problem.status().as_u16())
    };
    let purge = "/v1/queues/{queue}/purge";
    assert!(status(purge, "/v1/queues/mail-1/purge").is_ok());
    assert!(status(purge, "/v1/queues/mail%2D1/purge").is_ok());
    assert_eq!(status(purge, "/v1/queues/mail-2/purge"), Err(403));
    assert_eq!(status(purge, "/v1/queues/%ff/purge"), Err(403));
    assert_eq!(
        status("/v1/queues/{queue}/messages", "/v1/queues/mail-1/messages"),
        Err(403)
    );
}

#[test]
fn methods_that_are_not_listed_are_refused() {
    let setup = setup(Mode::Off);
    let table = Table::of(&PARTS);
    let head = head(&Method::DELETE, "/inventory", "127.0.0.1", &[]);
    let problem = setup
        .guard
        .check(&table, "/inventory", &head)
        .expect_err("refused");
    assert_eq!(problem.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[test]
fn listeners_beyond_loopback_are_exposed_unless_every_route_needs_a_key() {
    let (lines, controller) = (Table::of(&[Part::Lines]), Table::of(&[Part::Controller]));
    let exposure = |mode, table: &Table, address: &str| setup(mode).guard.exposure(table, address);
    for address in [":80", "0.0.0.0:80", "[::]:80", "192.0.2.7:80", "host:80"] {
        let cause = exposure(Mode::Auto, &lines, address).expect("an exposure");
        assert!(cause.contains("1 routes"), "{cause}");
        assert!(exposure(Mode::Off, &lines, address).is_some());
        assert_eq!(exposure(Mode::On, &lines, address), None);
        assert_eq!(exposure(Mode::Off, &controller, address), None);
    }
    for address in [
        "localhost:80",
        "127.0.0.1:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
    ] {
        assert_eq!(exposure(Mode::Off, &lines, address), None, "{address}");
    }
}
