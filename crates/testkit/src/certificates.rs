//! Certificates for servers under test.

use std::path::Path;
use std::process::Command;

/// Makes a certificate for `localhost` in a folder (`server.pem`, `server.key`), and the authority that signed it (`ca.pem`).
///
/// # Panics
/// When `openssl` is not installed.
pub fn make(folder: &Path) {
    let openssl = |arguments: &str| {
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
    };
    let name = "subjectAltName=DNS:localhost";
    std::fs::write(folder.join("names"), name).expect("written");
    openssl("req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -keyout ca.key -out ca.pem");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names -out server.pem",
    );
}
