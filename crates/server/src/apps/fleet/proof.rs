//! Proofs that the controller published a configuration, which agents and workers verify with its public key.
//!
//! The signing key is derived from the secret of the controller's epoch, so every controller of a database has the same one, and
//! a restored database keeps it. Source: RFC 8032, "Edwards-Curve Digital Signature Algorithm".

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use towpath_core::port::fleet::Epoch;
use towpath_core::{Error, Result};

/// Prefix of signed bytes, so that no other signature of the key is taken for one of a configuration.
const CONTEXT: &[u8] = b"towpath fleet configuration 1\n";

/// Purpose of the derived key.
const PURPOSE: &[u8] = b"towpath fleet signing key 1";

const KEY_BYTES: usize = 32;

/// A signature and the public key that verifies it, both in base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    pub(super) public_key: String,
    pub(super) signature: String,
}

impl Proof {
    /// Signs a configuration's bytes for this epoch.
    pub(super) fn sign(epoch: &Epoch, bytes: &[u8]) -> Result<Self> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, epoch.secret.as_bytes());
        let seed = hmac::sign(&secret, PURPOSE);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref())
            .map_err(|_| Error::corrupt("the epoch's secret makes no signing key"))?;
        Ok(Self {
            public_key: URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
            signature: URL_SAFE_NO_PAD.encode(pair.sign(&[CONTEXT, bytes].concat()).as_ref()),
        })
    }
}

/// The controller's public key, as an agent or a worker is configured with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// A key in base64url, as `proof.public_key` of a configuration has it; `None` for another text.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Whether the proof is of the controller with this key, and for these bytes.
    ///
    /// # Errors
    /// `Invalid` when it is not.
    pub(super) fn verify(&self, proof: Option<&Proof>, bytes: &[u8]) -> Result<()> {
        let proof = proof.ok_or_else(|| {
            Error::invalid("the configuration has no proof, which `fleet.public_key` requires")
        })?;
        let signature = URL_SAFE_NO_PAD.decode(&proof.signature).ok();
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        let verified = signature.and_then(|signature| {
            let message = [CONTEXT, bytes].concat();
            key.verify(&message, &signature).ok()
        });
        verified.ok_or_else(|| {
            Error::invalid(
                "the configuration's proof is not of the controller with `fleet.public_key`",
            )
        })
    }
}
