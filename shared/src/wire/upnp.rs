//! The client's half of UPnP's Internet Gateway Device, versions 1 and 2: an SSDP search, the device's description, and a
//! few SOAP actions.
//!
//! A search answer is one datagram, `LOCATION: http://192.168.1.1:5000/rootDesc.xml`. The description there lists services;
//! those of WANIPConnection and WANPPPConnection have a `controlURL`, which SOAP actions are posted to. All of it must be
//! at the gateway itself: an answer that sends us elsewhere is refused, so that no neighbour can have us call on others.
//!
//! The XML is read as a stream of events without a tree: nesting costs nothing.

use std::net::{IpAddr, Ipv4Addr};

use quick_xml::Reader;
use quick_xml::events::Event;
use thiserror::Error;

use super::pcp::Transport;
use crate::limits::{UPNP_PATH_BYTES_MAX, UPNP_SERVICES_MAX};

/// Where searches are sent beside the gateway itself.
pub const SEARCH_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// The port they are sent to.
pub const SEARCH_PORT: u16 = 1900;
/// What is searched for: gateways of either version. One of version 2 answers both.
pub const SEARCH_TARGETS: [&str; 2] =
    ["urn:schemas-upnp-org:device:InternetGatewayDevice:2", "urn:schemas-upnp-org:device:InternetGatewayDevice:1"];

/// A text read from XML is no longer than this; what is longer is nothing we look for.
const TEXT_BYTES_MAX: usize = UPNP_PATH_BYTES_MAX + 64;

/// What a device said makes no sense, or leads elsewhere: the device is at fault, or whoever forges its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum UpnpError {
    /// No answer to a search.
    #[error("not an answer to a search")]
    NotASearchAnswer,
    /// A URL that is none, or too long.
    #[error("not a URL that can be asked")]
    Url,
    /// A URL that leads to another host.
    #[error("a URL that leads away from the gateway")]
    Elsewhere,
    /// No well-formed XML.
    #[error("malformed XML")]
    Xml,
    /// A description without a service that maps ports.
    #[error("no service that maps ports")]
    NoService,
}

/// A place at the gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    /// The TCP port of its HTTP server.
    pub port: u16,
    /// Path and query: begins with a slash, visible ASCII, at most [`UPNP_PATH_BYTES_MAX`] bytes.
    pub path: String,
}

/// Which kind of service maps ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ServiceKind {
    /// WANIPConnection, version 2: can choose a port itself.
    Ip2,
    /// WANIPConnection, version 1.
    Ip1,
    /// WANPPPConnection.
    Ppp1,
}

impl ServiceKind {
    const ALL: [Self; 3] = [Self::Ip2, Self::Ip1, Self::Ppp1];

    /// Its name in descriptions and actions.
    pub fn urn(self) -> &'static str {
        match self {
            Self::Ip2 => "urn:schemas-upnp-org:service:WANIPConnection:2",
            Self::Ip1 => "urn:schemas-upnp-org:service:WANIPConnection:1",
            Self::Ppp1 => "urn:schemas-upnp-org:service:WANPPPConnection:1",
        }
    }
}

/// A service that maps ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Which kind.
    pub kind: ServiceKind,
    /// Where actions are posted to.
    pub control: Location,
}

/// A search for gateways.
pub fn search(target: &str) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {SEARCH_GROUP}:{SEARCH_PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n"
    )
}

/// Reads an answer to [`search`] that came from `gateway`.
pub fn parse_search_answer(datagram: &[u8], gateway: Ipv4Addr) -> Result<Location, UpnpError> {
    let text = std::str::from_utf8(datagram).map_err(|_| UpnpError::NotASearchAnswer)?;
    let mut lines = text.split('\n').map(str::trim);
    let mut status = lines.next().unwrap_or_default().split_ascii_whitespace();
    let is_http = status.next().is_some_and(|version| version.starts_with("HTTP/1."));
    if !is_http || status.next() != Some("200") {
        return Err(UpnpError::NotASearchAnswer);
    }
    let (mut location, mut is_gateway) = (None, false);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(':') else { continue };
        match name.trim_ascii() {
            name if name.eq_ignore_ascii_case("location") => location = location.or(Some(value.trim_ascii())),
            name if name.eq_ignore_ascii_case("st") => is_gateway = SEARCH_TARGETS.contains(&value.trim_ascii()),
            _ => {}
        }
    }
    match location {
        Some(url) if is_gateway => absolute(url, gateway),
        _ => Err(UpnpError::NotASearchAnswer),
    }
}

/// Reads a description that was at `base`. The services that map ports, best first, at most [`UPNP_SERVICES_MAX`].
pub fn parse_description(document: &[u8], base: &Location, gateway: Ipv4Addr) -> Result<Vec<Service>, UpnpError> {
    let mut base = base.clone();
    let mut services: Vec<Service> = Vec::new();
    let (mut kind, mut control): (_, Option<String>) = (None, None);
    walk(document, |name, text| match (name, text) {
        ("URLBase", Some(url)) => {
            if let Ok(location) = absolute(url, gateway) {
                base = location;
            }
        }
        ("service", None) => {
            if let (Some(kind), Some(control)) = (kind.take(), control.take())
                && services.len() < UPNP_SERVICES_MAX
                && let Ok(control) = resolve(&base, &control, gateway)
            {
                services.push(Service { kind, control });
            }
            (kind, control) = (None, None);
        }
        ("serviceType", Some(urn)) => kind = ServiceKind::ALL.into_iter().find(|kind| kind.urn() == urn),
        ("controlURL", Some(url)) => control = Some(url.to_owned()),
        _ => {}
    })?;
    services.sort_by_key(|service| service.kind);
    if services.is_empty() { Err(UpnpError::NoService) } else { Ok(services) }
}

/// What a gateway is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Its address outside.
    ExternalAddress,
    /// For how long it has been connected.
    Status,
    /// A mapping.
    Add {
        /// Of what.
        transport: Transport,
        /// The port outside.
        external: u16,
        /// Where it leads.
        ours: (Ipv4Addr, u16),
        /// For how many seconds; 0 is for ever.
        lifetime: u32,
        /// Whether another external port will do: for [`ServiceKind::Ip2`] only.
        any: bool,
    },
    /// The end of a mapping.
    Delete {
        /// Of what.
        transport: Transport,
        /// The port outside.
        external: u16,
    },
}

impl Action {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ExternalAddress => "GetExternalIPAddress",
            Self::Status => "GetStatusInfo",
            Self::Add { any: true, .. } => "AddAnyPortMapping",
            Self::Add { any: false, .. } => "AddPortMapping",
            Self::Delete { .. } => "DeletePortMapping",
        }
    }

    /// The body of the request. Nothing in it comes from outside, so nothing needs escaping.
    pub fn body(&self, kind: ServiceKind) -> String {
        let (name, urn) = (self.name(), kind.urn());
        let protocol = |transport| if transport == Transport::Tcp { "TCP" } else { "UDP" };
        let arguments = match *self {
            Self::ExternalAddress | Self::Status => String::new(),
            Self::Add { transport, external, ours: (ip, port), lifetime, .. } => format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
                 <NewProtocol>{}</NewProtocol><NewInternalPort>{port}</NewInternalPort>\
                 <NewInternalClient>{ip}</NewInternalClient><NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>ringlane</NewPortMappingDescription>\
                 <NewLeaseDuration>{lifetime}</NewLeaseDuration>",
                protocol(transport)
            ),
            Self::Delete { transport, external } => format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
                 <NewProtocol>{}</NewProtocol>",
                protocol(transport)
            ),
        };
        format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{urn}\">\
             {arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        )
    }
}

/// What an answer to an action may say. Only what was asked for is worth looking at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ActionAnswer {
    /// UPnP's error code, if it refuses.
    pub error: Option<u16>,
    /// To [`Action::ExternalAddress`].
    pub external_address: Option<Ipv4Addr>,
    /// To [`Action::Status`], in seconds.
    pub uptime: Option<u32>,
    /// To an [`Action::Add`] with `any`.
    pub reserved_port: Option<u16>,
}

/// Reads the answer to an action.
pub fn parse_action_answer(document: &[u8]) -> Result<ActionAnswer, UpnpError> {
    let mut answer = ActionAnswer::default();
    let mut is_envelope = false;
    walk(document, |name, text| match (name, text) {
        ("Envelope", None) => is_envelope = true,
        ("errorCode", Some(text)) => answer.error = Some(text.parse().unwrap_or(501)),
        ("NewExternalIPAddress", Some(text)) => answer.external_address = text.parse().ok(),
        ("NewUptime", Some(text)) => answer.uptime = text.parse().ok(),
        ("NewReservedPort", Some(text)) => answer.reserved_port = text.parse().ok(),
        _ => {}
    })?;
    if is_envelope { Ok(answer) } else { Err(UpnpError::Xml) }
}

/// What UPnP's error codes mean, those that a user can do something about.
pub fn error_name(code: u16) -> &'static str {
    match code {
        401 | 501 | 602 => "the gateway cannot do that",
        402 => "the gateway does not understand the request",
        606 => "not authorized",
        714 => "no such mapping",
        716 | 724 | 726 | 727 => "the gateway wants other arguments",
        718 => "the port is taken by another host",
        725 => "only permanent mappings",
        728 => "no port is left",
        729 => "the port is taken by another mechanism",
        _ => "an error without a name",
    }
}

/// Tells `seen` of each end of an element: its local name, and its text if it has no child elements and is not too long.
fn walk(document: &[u8], mut seen: impl FnMut(&str, Option<&str>)) -> Result<(), UpnpError> {
    let document = std::str::from_utf8(document).map_err(|_| UpnpError::Xml)?;
    // Some begin with the mark of a byte order, some end with a zero.
    let mut reader = Reader::from_str(document.trim_start_matches('\u{feff}').trim_end_matches('\0'));
    let mut text: Option<String> = None;
    let (mut depth, mut has_root) = (0_usize, false);
    let add = |text: &mut Option<String>, more: &str| {
        if let Some(text) = text.as_mut().filter(|text| text.len() + more.len() <= TEXT_BYTES_MAX) {
            text.push_str(more);
        }
    };
    loop {
        match reader.read_event().map_err(|_| UpnpError::Xml)? {
            Event::Start(_) => {
                (depth, has_root) = (depth + 1, true);
                text = Some(String::new());
            }
            Event::Text(more) => {
                // What does not fit ends up as nothing rather than as something shorter.
                if text.as_ref().is_some_and(|text| text.len() + more.len() > TEXT_BYTES_MAX) {
                    text = None;
                }
                add(&mut text, &more.xml10_content());
            }
            Event::GeneralRef(entity) => match entity.xml10_content().as_ref() {
                "amp" => add(&mut text, "&"),
                "lt" => add(&mut text, "<"),
                "gt" => add(&mut text, ">"),
                "quot" => add(&mut text, "\""),
                "apos" => add(&mut text, "'"),
                _ => text = None,
            },
            Event::End(end) => {
                depth = depth.checked_sub(1).ok_or(UpnpError::Xml)?;
                let text = text.take();
                seen(end.local_name().as_ref(), text.as_deref().map(str::trim));
            }
            Event::Eof if depth == 0 && has_root => return Ok(()),
            Event::Eof => return Err(UpnpError::Xml),
            _ => {}
        }
    }
}

/// What a URL in a description stands for.
fn resolve(base: &Location, url: &str, gateway: Ipv4Addr) -> Result<Location, UpnpError> {
    if url.contains("://") {
        return absolute(url, gateway);
    }
    if url.starts_with("//") {
        return absolute(&format!("http:{url}"), gateway);
    }
    let path = match url.strip_prefix('/') {
        Some(_) => url.to_owned(),
        None => {
            let directory = base.path.split('?').next().unwrap_or_default();
            let directory = directory.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{directory}/{url}")
        }
    };
    Ok(Location { port: base.port, path: checked_path(&path)? })
}

/// `http://ADDRESS[:PORT][/PATH]`, of the gateway's own address.
fn absolute(url: &str, gateway: Ipv4Addr) -> Result<Location, UpnpError> {
    let (scheme, rest) = url.split_once("://").ok_or(UpnpError::Url)?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(UpnpError::Url);
    }
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) if rest[at..].starts_with('?') => (&rest[..at], format!("/{}", &rest[at..])),
        Some(at) => (&rest[..at], rest[at..].to_owned()),
        None => (rest, "/".to_owned()),
    };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or(UpnpError::Url)?),
        None => (authority, 80),
    };
    let host: IpAddr = host.parse().map_err(|_| UpnpError::Elsewhere)?;
    if host != IpAddr::V4(gateway) {
        return Err(UpnpError::Elsewhere);
    }
    Ok(Location { port, path: checked_path(&path)? })
}

fn checked_path(path: &str) -> Result<String, UpnpError> {
    let path = path.split('#').next().unwrap_or_default();
    let is_fit =
        path.starts_with('/') && path.len() <= UPNP_PATH_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
    if is_fit { Ok(path.to_owned()) } else { Err(UpnpError::Url) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn found(location: &str) -> Result<Location, UpnpError> {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: {}\r\nLocation: {location}\r\nEXT:\r\n\r\n",
            SEARCH_TARGETS[1]
        );
        parse_search_answer(answer.as_bytes(), GATEWAY)
    }

    fn at(port: u16, path: &str) -> Location {
        Location { port, path: path.to_owned() }
    }

    fn description(services: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3</controlURL>\
             </service></serviceList><deviceList><device><deviceList><device><serviceList>{services}</serviceList></device>\
             </deviceList></device></deviceList></device></root>"
        )
    }

    fn service(kind: ServiceKind, control: &str) -> String {
        format!(
            "<service>\n <serviceType>{}</serviceType>\n <SCPDURL>/x.xml</SCPDURL>\n <controlURL> {control} </controlURL>\n</service>",
            kind.urn()
        )
    }

    #[test]
    fn a_search_answer_leads_to_the_gateway_or_nowhere() {
        assert_eq!(found("http://192.168.1.1:5000/rootDesc.xml"), Ok(at(5000, "/rootDesc.xml")));
        assert_eq!(found("HTTP://192.168.1.1"), Ok(at(80, "/")));
        for elsewhere in ["http://192.168.1.2:5000/x", "http://router.lan/x", "http://192.168.1.1@evil/x"] {
            assert_eq!(found(elsewhere), Err(UpnpError::Elsewhere), "{elsewhere}");
        }
        for wrong in [
            "ftp://192.168.1.1/",
            "/rootDesc.xml",
            "http://192.168.1.1:0/",
            "http://192.168.1.1:99999/",
            "http://[::1]/",
            "",
        ] {
            assert_eq!(found(wrong), Err(UpnpError::Url), "{wrong}");
        }
        assert_eq!(found(&format!("http://192.168.1.1/{}", "x".repeat(UPNP_PATH_BYTES_MAX))), Err(UpnpError::Url));
        assert_eq!(found("http://192.168.1.1/a b"), Err(UpnpError::Url));
        for no_answer in ["", "NOTIFY * HTTP/1.1\r\n\r\n", "HTTP/1.1 404 No\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
            assert_eq!(parse_search_answer(no_answer.as_bytes(), GATEWAY), Err(UpnpError::NotASearchAnswer));
        }
        assert_eq!(parse_search_answer(&[0xff; 40], GATEWAY), Err(UpnpError::NotASearchAnswer));
    }

    #[test]
    fn a_description_gives_the_services_that_map_ports_best_first() {
        let base = at(5000, "/igd/rootDesc.xml");
        let both = service(ServiceKind::Ppp1, "ppp?a=1&amp;b=2") + &service(ServiceKind::Ip2, "/ctl/IPConn");
        let services = parse_description(description(&both).as_bytes(), &base, GATEWAY).unwrap();
        let expected = [(ServiceKind::Ip2, "/ctl/IPConn"), (ServiceKind::Ppp1, "/igd/ppp?a=1&b=2")];
        let expected = expected.map(|(kind, path)| Service { kind, control: at(5000, path) });
        assert_eq!(services, expected);
        let elsewhere = description(&service(ServiceKind::Ip1, "http://192.168.1.9/ctl"));
        assert_eq!(parse_description(elsewhere.as_bytes(), &base, GATEWAY), Err(UpnpError::NoService));
        let other_port = description(&service(ServiceKind::Ip1, "http://192.168.1.1:49152/ctl"));
        assert_eq!(parse_description(other_port.as_bytes(), &base, GATEWAY).unwrap()[0].control, at(49152, "/ctl"));
        assert_eq!(parse_description(description("").as_bytes(), &base, GATEWAY), Err(UpnpError::NoService));
        let many = description(&service(ServiceKind::Ip1, "/ctl").repeat(100));
        assert_eq!(parse_description(many.as_bytes(), &base, GATEWAY).unwrap().len(), UPNP_SERVICES_MAX);
    }

    #[test]
    fn nested_endless_and_broken_xml_is_survived() {
        let base = at(80, "/");
        let deep = "<a>".repeat(30_000) + &"</a>".repeat(30_000);
        assert_eq!(parse_description(deep.as_bytes(), &base, GATEWAY), Err(UpnpError::NoService));
        assert_eq!(parse_description("<a>".repeat(30_000).as_bytes(), &base, GATEWAY), Err(UpnpError::Xml));
        assert_eq!(parse_description(b"", &base, GATEWAY), Err(UpnpError::Xml));
        assert_eq!(parse_description(b"<a></b>", &base, GATEWAY), Err(UpnpError::Xml));
        let bomb =
            "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]><root><controlURL>&b;</controlURL></root>";
        assert_eq!(parse_description(bomb.as_bytes(), &base, GATEWAY), Err(UpnpError::NoService));
        let long = description(&service(ServiceKind::Ip1, &"/x".repeat(4000)));
        assert_eq!(parse_description(long.as_bytes(), &base, GATEWAY), Err(UpnpError::NoService));
    }

    #[test]
    fn an_answer_to_an_action_gives_what_was_asked_for_or_an_error() {
        let envelope = |body: &str| {
            let text = format!(
                "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body></s:Envelope>\0"
            );
            parse_action_answer(text.as_bytes())
        };
        let address = "<u:R xmlns:u=\"x\"><NewExternalIPAddress>203.0.113.1</NewExternalIPAddress></u:R>";
        let expected = ActionAnswer { external_address: Some([203, 0, 113, 1].into()), ..Default::default() };
        assert_eq!(envelope(address), Ok(expected));
        let fault = "<s:Fault><faultcode>s:Client</faultcode><detail><UPnPError><errorCode>718</errorCode>\
                     <errorDescription>ConflictInMappingEntry</errorDescription></UPnPError></detail></s:Fault>";
        assert_eq!(envelope(fault), Ok(ActionAnswer { error: Some(718), ..Default::default() }));
        assert_eq!(
            envelope("<u:R/>"),
            Ok(ActionAnswer::default()),
            "most actions have no answer but that they are done"
        );
        assert_eq!(parse_action_answer(b"<html></html>"), Err(UpnpError::Xml));
    }

    #[test]
    fn an_actions_body_names_the_service_and_its_arguments() {
        let add = Action::Add {
            transport: Transport::Udp,
            external: 9100,
            ours: (Ipv4Addr::new(192, 168, 1, 2), 8100),
            lifetime: 7200,
            any: false,
        };
        let body = add.body(ServiceKind::Ppp1);
        assert!(body.contains("<u:AddPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANPPPConnection:1\">"));
        for argument in [
            "<NewExternalPort>9100<",
            "<NewProtocol>UDP<",
            "<NewInternalPort>8100<",
            "<NewInternalClient>192.168.1.2<",
            "<NewLeaseDuration>7200<",
        ] {
            assert!(body.contains(argument), "{argument}");
        }
        assert!(parse_action_answer(body.as_bytes()).is_ok(), "it is well-formed");
        assert_eq!(Action::Delete { transport: Transport::Tcp, external: 1 }.name(), "DeletePortMapping");
    }
}
