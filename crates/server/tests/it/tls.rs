//! Listeners with a certificate, which may change.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::{World, able, wait_until};

/// The answer to a client that trusts this authority.
fn ask(world: &World, authority: &Path, port: u16, path: &str) -> Option<String> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "5", "--cacert"])
        .arg(authority)
        .arg(format!("https://localhost:{port}{path}"))
        .current_dir(&world.folder)
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn roles_speak_tls_and_follow_their_certificate() {
    if !able(
        "openssl",
        Command::new("openssl").arg("version").output().is_ok(),
    ) {
        return;
    }
    let mut world = World::new();
    let make = |name: &str| {
        let folder = world.folder.join(name);
        std::fs::create_dir(&folder).unwrap();
        towpath_testkit::certificates::make(&folder);
        folder
    };
    let (old, new, live) = (make("old"), make("new"), world.folder.join("live"));
    std::fs::create_dir(&live).unwrap();
    let place = |from: &Path| {
        for file in ["server.pem", "server.key"] {
            std::fs::copy(from.join(file), live.join(file)).unwrap();
        }
    };
    place(&old);
    world.set(
        "TOWPATH_SERVER__TLS__CERTIFICATE",
        live.join("server.pem").display(),
    );
    let missing = world.run(&["up"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("go together"));
    world.set(
        "TOWPATH_SERVER__TLS__KEY",
        live.join("server.key").display(),
    );
    world.set("TOWPATH_SERVER__TLS__ADMIN", "on");
    let _running = world.up();
    let (http, hits) = (world.http.port(), world.hits.port());
    // The admin listener speaks both with this machine.
    let live_ca = old.join("ca.pem");
    assert_eq!(
        ask(&world, &live_ca, world.admin.port(), "/livez").as_deref(),
        Some("ok")
    );
    world.ok(&["health"]);
    let healthy = ask(&world, &old.join("ca.pem"), http, "/health").unwrap();
    assert!(healthy.contains("healthy"), "{healthy}");
    assert!(
        ask(&world, &old.join("ca.pem"), hits, "/config")
            .unwrap()
            .contains("NOT_FOUND")
    );
    assert_eq!(
        ask(&world, &new.join("ca.pem"), http, "/health"),
        None,
        "another authority"
    );
    assert!(
        world.client().send("GET", "/health", &[], b"").is_err(),
        "no plain HTTP"
    );
    // Invalid files change nothing.
    std::fs::write(live.join("server.key"), "nothing").unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert!(ask(&world, &old.join("ca.pem"), http, "/health").is_some());
    place(&new);
    wait_until("the new certificate", Duration::from_secs(15), || {
        ask(&world, &new.join("ca.pem"), http, "/health").is_some()
    });
    assert_eq!(ask(&world, &old.join("ca.pem"), http, "/health"), None);
}
