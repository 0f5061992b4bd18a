use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::*;

use super::*;
use crate::limits::{DNS_DOMAIN_BYTES_MAX, DNS_QUERY_BYTES_MAX, DNS_UDP_ANSWER_BYTES_MAX};

const ID_A: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";
const ID_B: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
const ID_C: &str = "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73";
const ID_RSA: &str = "QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb";
const CID_A: &str = "k51qzi5uqu5dl3ltvga8v4lfks12np6tetprha6va60q6okkujw46kptfju1cx";
const CID_B: &str = "k51qzi5uqu5dkxtt5jitjh0pdwwdjaq2d6omasr3ust9yokfv3fbpfxgbwdran";
const CID_RSA: &str = "k2k4r8o88nyynfk9tmx2tpwny7avwnrvol1luo7l2ceonyntbdy2f1ic";
const SOA: &str = "hs0.hyprspace. 60 IN SOA";

fn id(text: &str) -> PeerId {
    parse_peer_id(text).unwrap()
}

fn zone_on(interface: &str, domain: &str) -> Zone {
    let config = ZoneConfig { interface, domain, host_name: "Gateway.example.org", own: id(ID_A) };
    let peers = [("peerB", id(ID_B)), ("gateway", id(ID_C)), ("", id(ID_RSA)), ("a.b", id(ID_RSA))];
    Zone::new(config, peers).unwrap()
}

fn zone() -> Zone {
    zone_on("hs0", "hyprspace")
}

fn question(name: &str, asked: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), asked));
    message
}

fn ask(zone: &Zone, message: &Message) -> Message {
    let answer = zone.answer(&message.to_vec().unwrap(), Transport::Udp).unwrap();
    Message::from_vec(&answer).unwrap()
}

/// The answer as text: the code, the answer section, and the authority section behind `|`.
fn told(zone: &Zone, name: &str, asked: RecordType) -> (ResponseCode, String) {
    let answer = ask(zone, &question(name, asked));
    assert_eq!(answer.metadata.id, 7);
    assert!(answer.metadata.recursion_desired && !answer.metadata.recursion_available);
    assert_eq!(answer.metadata.authoritative, answer.metadata.response_code != ResponseCode::Refused);
    let section = |records: &[hickory_proto::rr::Record]| {
        let records: Vec<_> = records.iter().map(ToString::to_string).collect();
        records.join("; ")
    };
    let mut text = section(&answer.answers);
    if !answer.authorities.is_empty() {
        let authority = section(&answer.authorities);
        // What the record says is checked once.
        text += &format!("|{}", authority.split_inclusive("SOA").next().unwrap());
    }
    (answer.metadata.response_code, text)
}

fn found(name: &str, asked: RecordType) -> String {
    let (code, text) = told(&zone(), name, asked);
    assert_eq!(code, ResponseCode::NoError, "{name} {asked}");
    text
}

#[test]
fn listeners_are_where_hyprspace_has_them() {
    let vectors = [
        ("hyprspace", "127.43.104.80:11355"),
        ("hs0", "127.56.114.5:20647"),
        ("hs1", "127.56.114.4:20648"),
        ("hs2", "127.56.114.7:20649"),
        ("vpn0", "127.22.113.91:25768"),
        ("wg0", "127.39.102.5:20650"),
    ];
    for (interface, address) in vectors {
        assert_eq!(listen_address(interface).to_string(), address);
    }
}

#[test]
fn the_zone_has_the_interfaces_name_unless_that_is_hyprspace() {
    let vectors = [
        ("hyprspace", "hyprspace", "hyprspace."),
        ("hyprspace", "vpn", "vpn."),
        ("hs0", "hyprspace", "hs0.hyprspace."),
        ("hs0", "vpn", "hs0.vpn."),
        ("hs0", "net.Example.org", "hs0.net.example.org."),
        ("eth0.7", "vpn", "eth0.7.vpn."),
    ];
    for (interface, domain, origin) in vectors {
        assert_eq!(zone_on(interface, domain).origin(), origin);
    }
    let own = id(ID_A);
    assert!(Zone::new(ZoneConfig { interface: "a..b", domain: "vpn", host_name: "", own }, []).is_err());
}

#[test]
fn a_name_is_an_alias_of_the_cid_which_has_the_addresses_asked_for() {
    let alias = format!("peerb.hs0.hyprspace. 0 IN CNAME {CID_B}.hs0.hyprspace.");
    let v4 = format!("{CID_B}.hs0.hyprspace. 86400 IN A 100.64.4.143");
    let v6 = format!("{CID_B}.hs0.hyprspace. 86400 IN AAAA fd00:6879:7072:7370:6163:6500:b497:d158");
    assert_eq!(found("peerB.hs0.hyprspace.", RecordType::A), format!("{alias}; {v4}"));
    assert_eq!(found("PEERB.HS0.Hyprspace.", RecordType::AAAA), format!("{alias}; {v6}"));
    assert_eq!(found("peerb.hs0.hyprspace.", RecordType::CNAME), alias);
    assert_eq!(found("peerb.hs0.hyprspace.", RecordType::ANY), alias);
    assert_eq!(found("peerb.hs0.hyprspace.", RecordType::TXT), format!("{alias}|{SOA}"));
    assert_eq!(found(&format!("{CID_B}.hs0.hyprspace."), RecordType::A), v4);
    assert_eq!(found(&format!("{}.hs0.hyprspace.", CID_B.to_uppercase()), RecordType::AAAA), v6);
    assert_eq!(found(&format!("{CID_B}.hs0.hyprspace."), RecordType::ANY), v4);
    assert_eq!(found(&format!("{CID_B}.hs0.hyprspace."), RecordType::MX), format!("|{SOA}"));
}

#[test]
fn an_id_is_understood_in_any_base_and_case() {
    let v4 = format!("{CID_B}.hs0.hyprspace. 86400 IN A 100.64.4.143");
    for text in [ID_B.to_owned(), ID_B.to_lowercase()] {
        let alias = format!("{}.hs0.hyprspace. 0 IN CNAME {CID_B}.hs0.hyprspace.", ID_B.to_lowercase());
        assert_eq!(found(&format!("{text}.hs0.hyprspace."), RecordType::A), format!("{alias}; {v4}"));
    }
    let base32 = multibase::encode(Base::Base32Lower, [&[1, 0x72], &id(ID_RSA).to_bytes()[..]].concat());
    let answer = found(&format!("{base32}.hs0.hyprspace."), RecordType::A);
    assert!(answer.ends_with(&format!("{CID_RSA}.hs0.hyprspace. 86400 IN A 100.64.26.129")), "{answer}");
}

#[test]
fn a_service_is_any_label_before_a_node_and_has_only_an_ipv6_address() {
    let alias = format!("example.peerb.hs0.hyprspace. 0 IN CNAME example.{CID_B}.hs0.hyprspace.");
    let v6 = format!("example.{CID_B}.hs0.hyprspace. 86400 IN AAAA fd00:6879:7072:7370:7376:b497:d158:a3dd");
    assert_eq!(found("example.peerB.hs0.hyprspace.", RecordType::AAAA), format!("{alias}; {v6}"));
    assert_eq!(found("example.peerB.hs0.hyprspace.", RecordType::A), format!("{alias}|{SOA}"));
    assert_eq!(found(&format!("example.{CID_B}.hs0.hyprspace."), RecordType::AAAA), v6);
    assert_eq!(found(&format!("example.{CID_B}.hs0.hyprspace."), RecordType::ANY), v6);
    assert_eq!(found(&format!("example.{CID_B}.hs0.hyprspace."), RecordType::A), format!("|{SOA}"));
    // Its spelling is part of its address.
    assert!(!found("Example.peerB.hs0.hyprspace.", RecordType::AAAA).contains("eXample"));
    let other = found(&format!("eXample.{CID_B}.hs0.hyprspace."), RecordType::AAAA);
    assert!(other.starts_with("eXample.") && !other.contains("a3dd"), "{other}");
}

#[test]
fn the_host_name_stands_for_this_node_and_before_a_peer_of_that_name() {
    let answer = found("gateway.hs0.hyprspace.", RecordType::A);
    assert!(answer.ends_with(&format!("{CID_A}.hs0.hyprspace. 86400 IN A 100.64.132.22")), "{answer}");
    // The peer has lost it, also where it is found by its address.
    assert_eq!(
        found("18.4.64.100.in-addr.arpa.", RecordType::PTR).split(' ').next_back(),
        Some(format!("{}.", zone().nodes[2].cid.clone() + ".hs0.hyprspace").as_str())
    );
    assert_eq!(zone().unusable(), ["a.b"]);
}

#[test]
fn addresses_have_the_names_of_their_nodes() {
    let ptr = |name: &str| found(name, RecordType::PTR);
    assert_eq!(ptr("143.4.64.100.in-addr.arpa."), "143.4.64.100.in-addr.arpa. 60 IN PTR peerb.hs0.hyprspace.");
    let v6 = "8.5.1.d.7.9.4.b.0.0.5.6.3.6.1.6.0.7.3.7.2.7.0.7.9.7.8.6.0.0.d.f.ip6.arpa.";
    assert_eq!(ptr(v6), format!("{v6} 60 IN PTR peerb.hs0.hyprspace."));
    assert_eq!(ptr("22.132.64.100.IN-ADDR.arpa.").split(' ').next_back(), Some("gateway.hs0.hyprspace."));
    assert_eq!(
        ptr("129.26.64.100.in-addr.arpa.").split(' ').next_back(),
        Some(format!("{CID_RSA}.hs0.hyprspace.").as_str())
    );
    assert_eq!(found("143.4.64.100.in-addr.arpa.", RecordType::A), "|64.100.in-addr.arpa. 60 IN SOA");
    // There are names below it.
    assert_eq!(found("4.64.100.in-addr.arpa.", RecordType::PTR), "|64.100.in-addr.arpa. 60 IN SOA");
    for (name, code) in [
        ("144.4.64.100.in-addr.arpa.", ResponseCode::NXDomain),
        ("9.64.100.in-addr.arpa.", ResponseCode::NXDomain),
        ("1.143.4.64.100.in-addr.arpa.", ResponseCode::NXDomain),
        ("1.0.65.100.in-addr.arpa.", ResponseCode::Refused),
        ("100.in-addr.arpa.", ResponseCode::Refused),
        ("1.0.0.127.in-addr.arpa.", ResponseCode::Refused),
        ("0.0.0.0.d.f.ip6.arpa.", ResponseCode::Refused),
    ] {
        assert_eq!(told(&zone(), name, RecordType::PTR).0, code, "{name}");
    }
}

#[test]
fn what_does_not_exist_is_said_not_to_and_what_is_not_ours_is_refused() {
    for name in
        ["nobody.hs0.hyprspace.", "http.nobody.hs0.hyprspace.", "a.http.peerb.hs0.hyprspace.", "a.b.hs0.hyprspace."]
    {
        assert_eq!(told(&zone(), name, RecordType::A), (ResponseCode::NXDomain, format!("|{SOA}")), "{name}");
    }
    for name in ["example.org.", "hyprspace.", "peerb.hyprspace.", "peerb.hs1.hyprspace.", "xhs0.hyprspace.", "."] {
        assert_eq!(told(&zone(), name, RecordType::A), (ResponseCode::Refused, String::new()), "{name}");
    }
}

#[test]
fn the_zone_itself_has_an_authority_and_a_server_and_no_address() {
    let soa =
        format!("hs0.hyprspace. 60 IN SOA {CID_A}.hs0.hyprspace. hostmaster.hs0.hyprspace. 1 86400 7200 3600000 60");
    assert_eq!(found("hs0.hyprspace.", RecordType::SOA), soa);
    assert_eq!(found("HS0.hyprspace.", RecordType::ANY), soa);
    assert_eq!(found("hs0.hyprspace.", RecordType::NS), format!("hs0.hyprspace. 60 IN NS {CID_A}.hs0.hyprspace."));
    assert_eq!(found("hs0.hyprspace.", RecordType::A), format!("|{SOA}"));
    assert!(found("64.100.in-addr.arpa.", RecordType::SOA).starts_with("64.100.in-addr.arpa. 60 IN SOA"));
}

#[test]
fn what_is_no_plain_question_is_refused_with_the_code_that_says_why() {
    let zone = zone();
    let code = |message: &Message| ask(&zone, message).metadata.response_code;
    let plain = question("peerb.hs0.hyprspace.", RecordType::A);

    let mut other_operation = plain.clone();
    other_operation.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&other_operation), ResponseCode::NotImp);
    let mut two = plain.clone();
    two.add_query(plain.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut none = plain.clone();
    none.queries.clear();
    assert_eq!(code(&none), ResponseCode::FormErr);
    let mut chaos = plain.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    assert_eq!(code(&question("hs0.hyprspace.", RecordType::AXFR)), ResponseCode::Refused);
    let mut later = plain.clone();
    later.set_edns({
        let mut edns = Edns::new();
        edns.set_version(1);
        edns
    });
    // BADVERS, which has one number with BADSIG.
    assert_eq!(u16::from(code(&later)), 16);

    let mut bytes = plain.to_vec().unwrap();
    bytes.pop();
    let answer = Message::from_vec(&zone.answer(&bytes, Transport::Udp).unwrap()).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::FormErr));
    let mut long = plain.to_vec().unwrap();
    long.resize(DNS_QUERY_BYTES_MAX + 1, 0);
    let answer = Message::from_vec(&zone.answer(&long, Transport::Tcp).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn answers_and_scraps_get_no_answer() {
    let mut answer = question("peerb.hs0.hyprspace.", RecordType::A);
    answer.metadata.message_type = MessageType::Response;
    let bytes = answer.to_vec().unwrap();
    assert_eq!(zone().answer(&bytes, Transport::Udp), None);
    assert_eq!(zone().answer(&[], Transport::Udp), None);
    assert_eq!(zone().answer(&[0; 11], Transport::Udp), None);
}

/// The longest names there can be: a service, a node and a zone that fill theirs.
fn long_question() -> (Zone, Message) {
    let domain = format!("{}.{}", "d".repeat(50), "e".repeat(DNS_DOMAIN_BYTES_MAX - 51));
    let name = format!("{}.{ID_B}.fifteen-bytes-0.{domain}.", "s".repeat(63));
    (zone_on("fifteen-bytes-0", &domain), question(&name, RecordType::AAAA))
}

#[test]
fn the_longest_names_have_an_answer_and_an_asker_that_cannot_take_it_is_told_to_come_again() {
    let (zone, plain) = long_question();
    let mut extended = plain.clone();
    extended.set_edns({
        let mut edns = Edns::new();
        edns.set_max_payload(DNS_UDP_ANSWER_BYTES_MAX);
        edns
    });
    for (message, transport, is_whole) in
        [(&plain, Transport::Udp, false), (&plain, Transport::Tcp, true), (&extended, Transport::Udp, true)]
    {
        let bytes = zone.answer(&message.to_vec().unwrap(), transport).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.truncation, !is_whole);
        assert_eq!(answer.answers.len(), if is_whole { 2 } else { 0 });
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(is_whole || bytes.len() <= 512);
    }
}

#[test]
fn edns_is_answered_with_edns_and_only_then() {
    let zone = zone();
    let plain = question("peerb.hs0.hyprspace.", RecordType::A);
    assert_eq!(ask(&zone, &plain).edns, None);
    let mut extended = plain.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    extended.set_edns(edns);
    let answer = ask(&zone, &extended);
    assert_eq!(answer.edns.map(|edns| edns.max_payload()), Some(DNS_UDP_ANSWER_BYTES_MAX));
    assert_eq!(answer.answers.len(), 2);
}

proptest! {
    #[test]
    fn no_bytes_crash_the_server_and_an_answer_belongs_to_its_question(
        mut query in proptest::collection::vec(any::<u8>(), 0..300),
        is_plain in any::<bool>(),
        transport in prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)],
    ) {
        if is_plain && query.len() >= 12 {
            query[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        if let Some(answer) = zone().answer(&query, transport) {
            prop_assert_eq!(&answer[..2], &query[..2]);
            prop_assert_eq!(answer[2] & 0x80, 0x80);
            prop_assert!(answer.len() <= usize::from(DNS_UDP_ANSWER_BYTES_MAX));
        }
    }
}
