//! The identity in a client's certificate, whose chain TLS has verified.

use std::sync::Arc;

use rustls::ServerConnection;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// Names of the certificate of a request's connection: the common name of its subject, then its DNS and URI names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate(Arc<[String]>);

impl ClientCertificate {
    /// The certificate that the client of this connection has shown; `None` without one.
    pub(super) fn of(connection: &ServerConnection) -> Option<Self> {
        let chain = connection.peer_certificates()?;
        Self::parse(chain.first()?)
    }

    fn parse(encoded: &[u8]) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(encoded).ok()?;
        let subject = certificate.subject().iter_common_name();
        let subject = subject.filter_map(|name| name.as_str().ok());
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let alternatives = alternatives.into_iter().flat_map(|found| {
            let names = found.value.general_names.iter();
            names.filter_map(|name| match name {
                GeneralName::DNSName(name) | GeneralName::URI(name) => Some(*name),
                _ => None,
            })
        });
        Some(Self::new(subject.chain(alternatives)))
    }

    /// A certificate with these names.
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }

    /// Its names, in the order in which they are tried.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn certificates_have_a_common_name_and_alternative_names() {
        let folder = tempfile::tempdir().expect("a folder");
        towpath_testkit::certificates::make(folder.path());
        let path = folder.path().join("server.pem");
        let encoded = CertificateDer::from_pem_file(path).expect("a certificate");
        let certificate = ClientCertificate::parse(&encoded).expect("parsed");
        assert_eq!(certificate.names(), ["localhost", "localhost"]);
        assert_eq!(ClientCertificate::parse(b"\x30\x03\x02\x01\x01"), None);
        assert_eq!(ClientCertificate::parse(b""), None);
    }
}
