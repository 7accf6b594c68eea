//! Certificates for servers under test.

use std::path::Path;
use std::process::Command;

/// Makes a certificate for `localhost` in a folder (`server.pem`, `server.key`), and the authority that signed it (`ca.pem`).
///
/// # Panics
/// When `openssl` is not installed.
pub fn make(folder: &Path) {
    let openssl = |arguments: &str| openssl(folder, arguments);
    let name = "subjectAltName=DNS:localhost";
    std::fs::write(folder.join("names"), name).expect("written");
    openssl("req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -keyout ca.key -out ca.pem");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out server.pem",
    );
}

/// Makes a certificate of a client (`NAME.pem`, `NAME.key`) with the common name `NAME.test`, signed by the authority that
/// [`make`] made.
///
/// # Panics
/// When `openssl` is not installed.
pub fn client(folder: &Path, name: &str) {
    // With an extension it is of version 3.
    let usage = "extendedKeyUsage=clientAuth";
    std::fs::write(folder.join("usage"), usage).expect("written");
    openssl(
        folder,
        &format!(
            "req -newkey rsa:2048 -nodes -subj /CN={name}.test -keyout {name}.key -out {name}.csr"
        ),
    );
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile usage -out {name}.pem"
        ),
    );
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl runs");
    assert!(
        output.status.success(),
        "{arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
