//! The TLS of `/wss`, which is there for what stands between two nodes and not for them.
//!
//! *Any* certificate is accepted from whom we dial. That is sound because nothing rests on this layer: inside it, Noise or
//! TLS of libp2p proves the peer's id, which the configuration names, and protects every byte. Whoever ends the outer TLS
//! with a certificate of his own sees and can do exactly what he could with `/ws`, where it is missing: the bytes of an
//! encrypted and authenticated handshake, to pass on or to break off. To insist on public authorities would only keep out
//! peers with a certificate that nobody signed, and those behind a proxy that opens TLS.

use std::sync::Arc;

use ringlane_shared::config::CertificateFiles;
use rustls::crypto::{CryptoProvider, aws_lc_rs::default_provider};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WantsServerCert;
use rustls::{ConfigBuilder, Error, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::WebError;
use super::certificate::FileCertificate;
use crate::tls_client;

/// What a WebSocket's handshake is written in.
const ALPN: &[u8] = b"http/1.1";
/// In a certificate that we make: nobody looks at it, and it tells nothing.
const NAME: &str = "localhost";

/// Both ends of the outer TLS.
#[derive(Clone, Default)]
pub(in crate::swarm) struct OuterTls {
    /// `None` until it is needed: a certificate of our own is made only for those who listen.
    server: Option<TlsAcceptor>,
}

impl OuterTls {
    /// Reads the files, now and when they have changed, or is ready to do without.
    pub(super) fn new(files: Option<&CertificateFiles>) -> Result<Self, WebError> {
        let Some(files) = files else { return Ok(Self::default()) };
        let provider = Arc::new(default_provider());
        let certificate = Arc::new(FileCertificate::new(files, Arc::clone(&provider))?);
        let config = server_config(provider, |builder| Ok(builder.with_cert_resolver(certificate)));
        let config = config.map_err(|error| WebError::Certificate(error.to_string()))?;
        Ok(Self { server: Some(config) })
    }

    /// For a listener.
    pub(super) fn acceptor(&mut self) -> Result<TlsAcceptor, String> {
        if let Some(server) = &self.server {
            return Ok(server.clone());
        }
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).map_err(|error| error.to_string())?;
        let key = PrivatePkcs8KeyDer::from(made.key_pair.serialize_der());
        let chain = vec![made.cert.der().clone()];
        let server = server_config(Arc::new(default_provider()), |builder| builder.with_single_cert(chain, key.into()));
        let server = server.map_err(|error| error.to_string())?;
        Ok(self.server.insert(server).clone())
    }

    /// For whoever dials.
    pub(super) fn connector() -> Result<TlsConnector, Error> {
        let mut config = tls_client::config(|_| Ok(()))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config).into())
    }
}

fn server_config(
    provider: Arc<CryptoProvider>,
    show: impl FnOnce(ConfigBuilder<ServerConfig, WantsServerCert>) -> Result<ServerConfig, Error>,
) -> Result<TlsAcceptor, Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = show(builder.with_no_client_auth())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_in_files_is_used_and_one_that_is_not_there_ends_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let files =
            CertificateFiles { certificate: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        let problem = |files: &CertificateFiles| OuterTls::new(Some(files)).err().map(|error| error.to_string());
        assert!(problem(&files).is_some_and(|text| text.contains("tls_certificate") && text.contains("cert.pem")));
        let [made, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap());
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        assert!(problem(&files).is_some_and(|text| text.contains("tls_key") && text.contains("key.pem")));
        std::fs::write(&files.key, other.key_pair.serialize_pem()).unwrap();
        assert!(problem(&files).is_some_and(|text| text.contains("cannot be used")));
        std::fs::write(&files.key, made.key_pair.serialize_pem()).unwrap();
        assert_eq!(problem(&files), None);
        std::fs::write(&files.certificate, "no certificate").unwrap();
        assert!(problem(&files).is_some());
    }
}
