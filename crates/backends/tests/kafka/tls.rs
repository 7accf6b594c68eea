//! TLS, users with passwords, and certificates of clients.

use std::sync::Arc;

use towpath_core::{ErrorKind, NewMessage, StreamName, SystemClock};
use towpath_testkit::servers::kafka::Server;

use super::{open, stream_of};

pub(super) async fn permitted_clients_connect_by_tls() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let secure = Server::start_secure(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let ca = path("ca.pem");
    let account = |user: &str, rest: &str| {
        format!(
            "kafkas://{user}@localhost:{}?timeout=3s{rest}",
            secure.account
        )
    };
    let trusted = format!("&tls_ca={ca}");
    let (cert, key) = (path("server.pem"), path("server.key"));
    let certificate = format!(
        "kafkas://localhost:{}?timeout=3s{trusted}&tls_cert={cert}&tls_key={key}",
        secure.certificate
    );
    let lines = StreamName::new("lines").expect("a valid name");
    for (number, url) in [
        account("alice:secret", &trusted),
        account("alice:secret", &format!("{trusted}&sasl=scram-sha-512")),
        certificate,
    ]
    .iter()
    .enumerate()
    {
        let backend = open(url).await;
        assert!(!backend.url.contains("secret"), "{}", backend.url);
        let stream = stream_of(&backend);
        let entry = NewMessage::new(number.to_string());
        let appended = stream.append(&lines, vec![entry]).await;
        appended.expect("append").remove(0).expect("appended");
        let there = stream.range(&lines, None, 10).await.expect("range");
        assert_eq!(there.len(), number + 1, "{url}");
        backend.lifecycle.close().await.expect("closed");
    }
    // A wrong password, an untrusted authority, no certificate.
    let bare = format!(
        "kafkas://localhost:{}?timeout=3s{trusted}",
        secure.certificate
    );
    for (url, reason) in [
        (account("alice:wrong", &trusted), "Authentication failed"),
        (account("alice:secret", ""), "certificate verify failed"),
        (bare, "SSL"),
    ] {
        let opened = towpath_backends::open(&url, Arc::new(SystemClock::new())).await;
        let backend = opened.expect("opening does not connect");
        let refused = backend.lifecycle.health().await.expect_err(&url);
        let text = refused.chain();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{text}");
        assert!(text.contains(reason), "{url}: {text}");
    }
}
