//! quinn-proto's configuration for lanes: one connection per endpoint, driven by its owner, that moves no bulk data but
//! packets in DATAGRAM frames (RFC 9221).

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, ConnectionId, EndpointConfig, MtuDiscoveryConfig, NoneTokenStore, RandomConnectionIdGenerator,
    ServerConfig, TransportConfig, ValidationTokenConfig, VarInt,
};
use ringlane_shared::lane::congestion::UnhinderedFactory;
use ringlane_shared::limits::{QUIC_QUEUE_BYTES, QUIC_RECEIVE_BYTES, TOKEN_BYTES, datagram_bytes_max, quic_bytes_max};

/// RFC 9000's version number; nothing else is spoken or answered.
pub(super) const QUIC_VERSION: u32 = 1;

/// Bytes of the connection ids that we choose: what short headers to us begin with.
const CONNECTION_ID_BYTES: usize = 8;

/// Assumed before the first measurement. The first retransmission comes after three times as much.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The rekey stream carries a few hundred bytes.
const STREAM_WINDOW_BYTES: u32 = 16 << 10;

/// Our configuration, the same for every lane but for who the peer is.
pub(super) struct QuicConfig {
    datagram_bytes_max: u16,
    transport: Arc<TransportConfig>,
}

impl QuicConfig {
    pub(super) fn new(inner_mtu: u16) -> Self {
        let datagram_bytes_max = datagram_bytes_max(inner_mtu).try_into().unwrap_or(u16::MAX);
        Self { datagram_bytes_max, transport: Arc::new(transport(quic_bytes_max(inner_mtu))) }
    }

    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut endpoint = EndpointConfig::default();
        endpoint
            // With greasing, a QUIC packet could look like one of our records.
            .grease_quic_bit(false)
            .supported_versions(vec![QUIC_VERSION])
            .cid_generator(|| Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID_BYTES)));
        // Refused below 1200 only, which the limit is above of.
        let _ = endpoint.max_udp_payload_size(self.datagram_bytes_max);
        endpoint
    }

    pub(super) fn client(&self, crypto: Arc<QuicClientConfig>, token: [u8; TOKEN_BYTES]) -> ClientConfig {
        let mut client = ClientConfig::new(crypto);
        client
            .version(QUIC_VERSION)
            .initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&token)))
            .token_store(Arc::new(NoneTokenStore))
            .transport_config(Arc::clone(&self.transport));
        client
    }

    pub(super) fn server(&self, crypto: Arc<QuicServerConfig>) -> ServerConfig {
        let mut server = ServerConfig::with_crypto(crypto);
        let mut no_tokens = ValidationTokenConfig::default();
        no_tokens.sent(0);
        server
            .migration(true)
            .max_incoming(1)
            .validation_token_config(no_tokens)
            .transport_config(Arc::clone(&self.transport));
        server
    }
}

fn transport(quic_bytes_max: usize) -> TransportConfig {
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(quic_bytes_max.try_into().unwrap_or(u16::MAX));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        // They are taken at any time, whatever carrier the peer has chosen.
        .datagram_receive_buffer_size(Some(QUIC_RECEIVE_BYTES))
        .datagram_send_buffer_size(QUIC_QUEUE_BYTES)
        .congestion_controller_factory(Arc::new(UnhinderedFactory))
        // The lane's worker knows by its records and echoes whether the peer is there, sooner than QUIC would, and keeps the
        // path alive by them: a record from a new address is what shows that a peer has moved, and one keep-alive is
        // enough for a battery. Until there is a worker, the setup's own deadline ends a dial.
        .max_idle_timeout(None)
        .keep_alive_interval(None)
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(mtu_discovery))
        // The owner says each time how many datagrams it takes at once.
        .enable_segmentation_offload(true);
    transport
}
