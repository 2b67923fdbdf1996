//! TLS of the listener: builds its configuration from the contents of the files. The composition root reads the files,
//! and reads them again when they change.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
};
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use x509_cert::certificate::Rfc5280;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;

use super::TlsGuard;
use super::certificate::{CertificatePatterns, Clients};

/// Contents of the files, as PEM (RFC 7468).
pub struct Material {
    /// The agent's certificate and its intermediates.
    pub chain: Vec<u8>,
    /// Private key of that certificate.
    pub key: Vec<u8>,
    /// Authorities of the certificates that clients have to show; without any, clients show none.
    pub client_ca: Option<Vec<u8>>,
    /// Revocation lists of these authorities.
    pub client_crl: Option<Vec<u8>>,
}

/// Unusable TLS files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("tls.certificate holds no certificate that can be used: it has to be PEM")]
    Certificate(#[source] PemError),
    /// No private key. The file's content is not reported.
    #[error("tls.key holds no private key that can be used: it has to be PEM, without a password")]
    Key,
    /// Key of another certificate, or of an unknown kind.
    #[error("tls.certificate and tls.key cannot be used together")]
    Pair(#[source] rustls::Error),
    #[error("tls.client_ca holds no certificate that can be used: it has to be PEM")]
    ClientCa(#[source] PemError),
    #[error("tls.client_ca holds a certificate that is no authority's")]
    Authority(#[source] rustls::Error),
    #[error("tls.client_crl holds no CRL that can be used: it has to be PEM")]
    ClientCrl(#[source] PemError),
    /// Verifier of client certificates, built from all authorities together.
    #[error("tls.client_ca cannot be used")]
    Verifier(#[from] VerifierBuilderError),
}

/// Builds the TLS of a listener from the files and the rules for client certificates.
///
/// # Errors
/// [`TlsError`], which names the file and the fault.
pub fn guard(material: &Material, rules: Vec<CertificatePatterns>) -> Result<TlsGuard, TlsError> {
    let config = config(material)?;
    let chain = certificates(&material.chain).map_err(TlsError::Certificate)?;
    let clients = chain.first().map(|own| Clients::new(rules, own)).unwrap_or_default();
    let crl_until = material.client_crl.as_deref().and_then(next_update);
    Ok(TlsGuard { config, clients, crl_until })
}

/// Earliest time at which one of the lists in `pem` is to be replaced (RFC 5280, section 5.1.2.5).
fn next_update(pem: &[u8]) -> Option<SystemTime> {
    let lists = revoked(pem).ok()?;
    let until = |list: &CertificateRevocationListDer<'_>| {
        let list = CertificateList::<Rfc5280>::from_der(list).ok()?;
        list.tbs_cert_list.next_update.map(|time| time.to_system_time())
    };
    lists.iter().filter_map(until).min()
}

/// Builds the configuration of TLS handshakes.
///
/// # Errors
/// [`TlsError`], which names the file and the fault.
fn config(material: &Material) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Pair)?;
    let builder = match &material.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(pem).map_err(TlsError::ClientCa)? {
                roots.add(authority).map_err(TlsError::Authority)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let revoked = material.client_crl.as_deref().map(revoked).transpose();
            let verifier = match revoked.map_err(TlsError::ClientCrl)? {
                // Only the clients' certificates are checked: not every intermediate authority publishes a list.
                Some(lists) => verifier.with_crls(lists).only_check_end_entity_revocation(),
                None => verifier,
            };
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let chain = certificates(&material.chain).map_err(TlsError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&material.key).map_err(|_| TlsError::Key)?;
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
    if material.client_ca.is_some() {
        // A resumed session is not verified again: a client's certificate could have expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Reads all revocation lists, at least one.
fn revoked(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let all: Vec<_> =
        CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    if all.is_empty() { Err(PemError::NoItemsFound) } else { Ok(all) }
}

/// Reads all certificates, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    if all.is_empty() { Err(PemError::NoItemsFound) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;
    use crate::model::fault::chain;

    fn pair() -> (Vec<u8>, Vec<u8>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec!["node".to_string()]).unwrap();
        (cert.pem().into_bytes(), signing_key.serialize_pem().into_bytes())
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_a_key_never_shown() {
        let ((one, key), (other, _)) = (pair(), pair());
        let with = |chain: &[u8], key: &[u8], client_ca: Option<&[u8]>| Material {
            chain: chain.to_vec(),
            key: key.to_vec(),
            client_ca: client_ca.map(<[u8]>::to_vec),
            client_crl: None,
        };
        config(&with(&one, &key, None)).unwrap();
        config(&with(&one, &key, Some(&other))).unwrap();
        let half = &key[..key.len() / 2];
        for (material, expected) in [
            (with(b"", &key, None), "tls.certificate holds no certificate"),
            (with(&key, &key, None), "tls.certificate holds no certificate"),
            (with(&one, b"", None), "tls.key holds no private key"),
            (with(&one, half, None), "tls.key holds no private key"),
            (with(&other, &key, None), "tls.certificate and tls.key cannot be used together"),
            (with(&one, &key, Some(b"nothing")), "tls.client_ca holds no certificate"),
        ] {
            let error = chain(&config(&material).unwrap_err());
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("PRIVATE") && error.len() < 200, "{error}");
        }
    }
}
