//! Whom TLS trusts: the usual authorities, or a pin.
//!
//! A pin *replaces* the authorities: the server must show a certificate with exactly this public key and prove that it has
//! the private one; who signed it, for which name and until when does not matter. So a router of one's own needs no
//! authority, and one with a pin is not at the mercy of any.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use crate::tls_client;

/// How to speak TLS to a server, with the SHA-256 of its public key if that is known.
pub(super) fn client_config(pin: Option<[u8; 32]>) -> Result<Arc<ClientConfig>, Error> {
    let config = match pin {
        Some(pin) => tls_client::config(move |certificate| {
            let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
            let is_pinned = digest(&SHA256, &key).as_ref() == pin;
            is_pinned.then_some(()).ok_or(CertificateError::ApplicationVerificationFailure.into())
        })?,
        None => ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
            .with_no_client_auth(),
    };
    Ok(Arc::new(config))
}
