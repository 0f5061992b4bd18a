//! TLS 1.3 for lanes: one Ed25519 key per node, which is its peer id, and nothing else to trust or to expire.
//!
//! Both ends present their key as a raw public key (RFC 7250) and accept exactly one: the expected peer's. The key
//! exchange is X25519MLKEM768, or X25519 with a node that knows no better; there are no tickets, no resumption and no
//! early data.

use std::sync::Arc;

use libp2p::identity::{self, PeerId, PublicKey};
use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group, sign::any_eddsa_type};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, PeerMisbehaved, SignatureScheme};
use thiserror::Error;

/// The application protocol of lanes; the number rises with any change that old nodes would not understand.
pub const ALPN: &[u8] = b"ringlane/1";

/// DER around an Ed25519 public key (RFC 8410, section 4): sequence, algorithm 1.3.101.112, bit string.
const PUBLIC_KEY_INFO_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// DER around an Ed25519 seed (RFC 8410, section 7): sequence, version 0, algorithm, nested octet strings.
const PRIVATE_KEY_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Multihash code of a hash that is its own input: what an Ed25519 peer id is made of.
const IDENTITY_MULTIHASH: u64 = 0;

/// Why no TLS configuration could be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum TlsError {
    /// Our key, from the configuration, is of another type.
    #[error("our identity is not an Ed25519 key")]
    Identity,
    /// The configured peer id does not contain an Ed25519 key.
    #[error("peer id {0} holds no Ed25519 key")]
    PeerId(PeerId),
    /// The system has no random numbers for us.
    #[error("no random numbers")]
    Random,
    /// rustls refused what we asked for: our mistake.
    #[error("TLS configuration: {0}")]
    Configuration(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Configuration(error.to_string())
    }
}

impl From<NoInitialCipherSuite> for TlsError {
    fn from(error: NoInitialCipherSuite) -> Self {
        Self::Configuration(error.to_string())
    }
}

/// An Ed25519 key as TLS shows it: its DER subject public key info.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKeyInfo([u8; 44]);

impl PublicKeyInfo {
    /// The key that an Ed25519 peer id consists of.
    pub fn of_peer(peer: &PeerId) -> Result<Self, TlsError> {
        let hash = peer.as_ref();
        if hash.code() != IDENTITY_MULTIHASH {
            return Err(TlsError::PeerId(*peer));
        }
        let key = PublicKey::try_decode_protobuf(hash.digest()).map_err(|_| TlsError::PeerId(*peer))?;
        let key = key.try_into_ed25519().map_err(|_| TlsError::PeerId(*peer))?;
        Ok(Self::of_key(&key))
    }

    fn of_key(key: &identity::ed25519::PublicKey) -> Self {
        let mut bytes = [0; 44];
        let (prefix, rest) = bytes.split_at_mut(PUBLIC_KEY_INFO_PREFIX.len());
        prefix.copy_from_slice(&PUBLIC_KEY_INFO_PREFIX);
        rest.copy_from_slice(&key.to_bytes());
        Self(bytes)
    }

    /// The DER bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Our key and algorithms, from which each link's configuration is made. Owner: control.
pub struct LaneTls {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
}

impl LaneTls {
    /// Prepares our key, and the random generator, whose first use in a process takes up to 0.1 s.
    pub fn new(keypair: &identity::Keypair) -> Result<Self, TlsError> {
        let keypair = keypair.clone().try_into_ed25519().map_err(|_| TlsError::Identity)?;
        let mut der = [PRIVATE_KEY_PREFIX.as_slice(), keypair.secret().as_ref()].concat();
        let signing = any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()));
        zeroize::Zeroize::zeroize(&mut der);
        let public = PublicKeyInfo::of_key(&keypair.public());
        let key = CertifiedKey::new(vec![CertificateDer::from(public.0.to_vec())], signing?);
        let provider = provider();
        provider.secure_random.fill(&mut [0; 32]).map_err(|_| TlsError::Random)?;
        Ok(Self { provider: Arc::new(provider), key: Arc::new(key) })
    }

    /// What dials `peer` and nobody else.
    pub fn client(&self, peer: PublicKeyInfo) -> Result<QuicClientConfig, TlsError> {
        Ok(QuicClientConfig::try_from(self.rustls_client(peer)?)?)
    }

    /// What lets `peer` and nobody else in.
    pub fn server(&self, peer: PublicKeyInfo) -> Result<QuicServerConfig, TlsError> {
        Ok(QuicServerConfig::try_from(self.rustls_server(peer)?)?)
    }

    fn rustls_client(&self, peer: PublicKeyInfo) -> Result<rustls::ClientConfig, TlsError> {
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(peer))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&self.key))));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_sni = false;
        tls.resumption = Resumption::disabled();
        Ok(tls)
    }

    fn rustls_server(&self, peer: PublicKeyInfo) -> Result<rustls::ServerConfig, TlsError> {
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier(peer))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&self.key))));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        Ok(tls)
    }

    fn verifier(&self, expected: PublicKeyInfo) -> Arc<ExactKey> {
        Arc::new(ExactKey { expected, provider: Arc::clone(&self.provider) })
    }
}

impl std::fmt::Debug for LaneTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneTls(..)")
    }
}

/// In order of preference; the server follows the client's order, so both ends having the same list decides.
fn provider() -> CryptoProvider {
    CryptoProvider {
        // QUIC protects Initial packets with AES-128-GCM, whatever is preferred later: it must be in the list.
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..default_provider()
    }
}

/// Accepts one raw public key.
#[derive(Debug)]
struct ExactKey {
    expected: PublicKeyInfo,
    provider: Arc<CryptoProvider>,
}

impl ExactKey {
    fn check(&self, key: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if key.as_ref() == self.expected.as_bytes() && intermediates.is_empty() {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }
}

/// TLS 1.2 is compiled in by libp2p's dependencies but never negotiated here.
fn refuse_tls12() -> rustls::Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl ServerCertVerifier for ExactKey {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(key, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for ExactKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(key, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;
    use rustls::quic::{ClientConnection, Connection, ServerConnection, Version};

    use super::*;

    struct Node {
        tls: LaneTls,
        peer_id: PeerId,
    }

    impl Node {
        fn new() -> Self {
            let keypair = identity::Keypair::generate_ed25519();
            Self { tls: LaneTls::new(&keypair).unwrap(), peer_id: keypair.public().to_peer_id() }
        }

        fn key(&self) -> PublicKeyInfo {
            PublicKeyInfo::of_peer(&self.peer_id).unwrap()
        }
    }

    fn handshake(client: rustls::ClientConfig, server: rustls::ServerConfig) -> Result<[Connection; 2], rustls::Error> {
        let name = ServerName::try_from("peer.invalid").unwrap();
        let client = ClientConnection::new(Arc::new(client), Version::V1, name, vec![])?;
        let server = ServerConnection::new(Arc::new(server), Version::V1, vec![])?;
        let mut ends = [Connection::Client(client), Connection::Server(server)];
        for turn in 0..8 {
            // One encryption level at a time, as QUIC's packets would.
            loop {
                let mut flight = Vec::new();
                let next_level = ends[turn % 2].write_hs(&mut flight);
                ends[1 - turn % 2].read_hs(&flight)?;
                if next_level.is_none() {
                    break;
                }
            }
        }
        Ok(ends)
    }

    #[test]
    fn both_ends_negotiate_the_post_quantum_group_and_our_protocol() {
        let (a, b) = (Node::new(), Node::new());
        let ends = handshake(a.tls.rustls_client(b.key()).unwrap(), b.tls.rustls_server(a.key()).unwrap()).unwrap();
        for end in ends {
            assert!(!end.is_handshaking());
            assert_eq!(end.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
            assert_eq!(end.alpn_protocol(), Some(ALPN));
        }
    }

    #[test]
    fn a_node_without_the_post_quantum_group_is_met_with_x25519() {
        let (a, mut b) = (Node::new(), Node::new());
        b.tls.provider = Arc::new(CryptoProvider { kx_groups: vec![kx_group::X25519], ..provider() });
        let ends = handshake(a.tls.rustls_client(b.key()).unwrap(), b.tls.rustls_server(a.key()).unwrap()).unwrap();
        assert!(ends.iter().all(|end| end.negotiated_key_exchange_group().unwrap().name() == NamedGroup::X25519));
    }

    #[test]
    fn any_other_key_is_refused_by_either_end() {
        let (a, b, other) = (Node::new(), Node::new(), Node::new());
        for (for_client, for_server) in [(other.key(), a.key()), (b.key(), other.key())] {
            let ends = handshake(a.tls.rustls_client(for_client).unwrap(), b.tls.rustls_server(for_server).unwrap());
            let refusal = rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
            assert_eq!(ends.err(), Some(refusal));
        }
    }

    #[test]
    fn another_application_protocol_is_refused() {
        let (a, b) = (Node::new(), Node::new());
        let mut client = a.tls.rustls_client(b.key()).unwrap();
        client.alpn_protocols = vec![b"h3".to_vec()];
        assert!(handshake(client, b.tls.rustls_server(a.key()).unwrap()).is_err());
    }

    #[test]
    fn a_peer_id_that_is_a_mere_hash_is_refused() {
        let hashed = PeerId::from_bytes(&[&[0x12, 0x20][..], &[7; 32]].concat()).unwrap();
        assert_eq!(PublicKeyInfo::of_peer(&hashed), Err(TlsError::PeerId(hashed)));
    }
}
