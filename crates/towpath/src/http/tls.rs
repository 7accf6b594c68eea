//! The one cryptography provider of the process.

/// Installs it; every client and server of the process uses it. Calling again is fine.
pub fn install_provider() {
    // Somebody else was first: then there is one, which is all that matters.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
}
