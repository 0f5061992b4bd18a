//! What `status` says of port mappings.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What the routers were asked for, and what they granted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MappingsStatus {
    /// Whether routers are asked at all: `nat.port_mapping`.
    pub enabled: bool,
    /// Each gateway, asked from each of our addresses on its interface.
    pub gateways: Vec<GatewayStatus>,
}

/// One gateway.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Its address.
    pub gateway: IpAddr,
    /// The interface it is behind.
    pub interface: String,
    /// Our address there.
    pub local: IpAddr,
    /// `searching`, `settled`, `idle` (it answers nothing, or refuses everything, and is asked again later), `leaving`.
    pub state: String,
    /// `pcp`, `nat-pmp` or `upnp`; `null` if it answers none.
    pub method: Option<String>,
    /// Its address outside, as it says.
    pub external: Option<IpAddr>,
    /// Whether that one is private or shared, so that there is another translator behind it.
    pub private: bool,
    /// How often it has lost its mappings.
    pub restarts: u64,
    /// Answers that were to nothing we asked, or made no sense.
    pub strange_answers: u64,
    /// Every port it is asked for.
    pub mappings: Vec<MappingStatus>,
}

impl GatewayStatus {
    /// One that has answered nothing, and is asked for no port.
    pub fn new(gateway: IpAddr, interface: &str, local: IpAddr) -> Self {
        Self {
            gateway,
            interface: interface.to_owned(),
            local,
            state: "idle".to_owned(),
            method: None,
            external: None,
            private: false,
            restarts: 0,
            strange_answers: 0,
            mappings: Vec::new(),
        }
    }
}

/// One port.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MappingStatus {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Our port.
    pub port: u16,
    /// The workers whose lanes it belongs to.
    pub workers: Vec<u8>,
    /// Whether libp2p listens there.
    pub control: bool,
    /// Where it is reached from outside; `null` if it is not mapped.
    pub external: Option<SocketAddr>,
    /// Whether peers are told: not of private addresses, and not of a pinhole for an address that they know.
    pub offered: bool,
    /// What granted it.
    pub method: Option<String>,
    /// For how long it was granted.
    pub lifetime_seconds: Option<u64>,
    /// For how long it is still granted, unless it is renewed.
    pub expires_in_seconds: Option<u64>,
    /// How often it was.
    pub renewals: u64,
    /// Why it was refused last, if it was.
    pub problem: Option<String>,
}
