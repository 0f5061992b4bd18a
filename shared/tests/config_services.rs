//! Services in configuration files: what is accepted, what it becomes, and what is said about mistakes.

use std::path::Path;

use ringlane_shared::config::{ServiceSettings, ServiceTarget, parse_hyprspace, parse_toml};
use ringlane_shared::id::PeerIndex;

const PEERS: [(&str, &str); 2] = [
    ("site-b", "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46"),
    ("site-c", "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73"),
];

fn toml(services: &str) -> Result<Vec<ServiceSettings>, String> {
    let peers = PEERS.map(|(name, id)| format!("[[peers]]\nname = \"{name}\"\nid = \"{id}\"\n"));
    let text = format!("{}{services}", peers.concat());
    let settings = parse_toml(&text, Path::new("/etc/ringlane/net0.toml")).map_err(|error| error.to_string())?;
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    Ok(settings.services)
}

fn hyprspace(services: &str) -> Result<(Vec<ServiceSettings>, Vec<String>), String> {
    let peers = PEERS.map(|(name, id)| format!("{{\"name\": \"{name}\", \"id\": \"{id}\"}}")).join(",");
    let key = "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";
    let text = format!(
        "{{\"privateKey\": \"{key}\", \"bootstrapPeers\": [], \"peers\": [{peers}], \"services\": {{{services}}}}}"
    );
    let settings = parse_hyprspace(&text, Path::new("/etc/hyprspace/hs0.json")).map_err(|error| error.to_string())?;
    Ok((settings.services, settings.warnings))
}

fn tcp(address: &str) -> ServiceTarget {
    ServiceTarget::Tcp(address.parse().expect("an address"))
}

fn service(name: &str, id: [u8; 2], target: ServiceTarget) -> ServiceSettings {
    ServiceSettings { name: name.to_owned(), id, target, allow: None, deny: Vec::new() }
}

#[test]
fn a_service_has_a_target_and_may_be_for_some_peers_only() {
    let services = toml(
        r#"
        [services.example]
        target = "/tcp/8080"
        allow = ["@site-b"]
        deny = ["12D3KooW9tw"]
        [services.socket]
        target = "/unix/run/x.sock"
        [services.www]
        target = "/ip6/::1/tcp/80"
        "#,
    )
    .unwrap();
    let mut example = service("example", [0xa3, 0xdd], tcp("127.0.0.1:8080"));
    example.allow = Some(vec![PeerIndex(0)]);
    example.deny = vec![PeerIndex(1)];
    assert_eq!(services[0], example);
    assert_eq!(services[1].target, ServiceTarget::Unix("/run/x.sock".into()));
    assert_eq!(services[2], service("www", [0x11, 0x89], tcp("[::1]:80")));
    let texts: Vec<_> = services.iter().map(|service| service.target.to_string()).collect();
    assert_eq!(texts, ["/ip4/127.0.0.1/tcp/8080", "/unix/run/x.sock", "/ip6/::1/tcp/80"]);
}

#[test]
fn deny_is_stronger_than_allow_and_nobody_is_in_an_empty_allow() {
    let read = |access: &str| toml(&format!("[services.s]\ntarget = \"/tcp/1\"\n{access}")).unwrap().remove(0);
    let allowed = |service: &ServiceSettings| [0, 1, 2].map(|peer| service.allows(PeerIndex(peer)));
    assert_eq!(allowed(&read("")), [true, true, true]);
    assert_eq!(allowed(&read("allow = []")), [false, false, false]);
    assert_eq!(allowed(&read("allow = [\"@site-b\"]")), [true, false, false]);
    assert_eq!(allowed(&read("allow = [\"@site-b\", \"@site-c\"]\ndeny = [\"@site-b\"]")), [false, true, false]);
    assert_eq!(allowed(&read("deny = [\"@site-c\"]")), [true, false, true]);
}

#[test]
fn hyprspace_services_are_read_with_and_without_acl_and_in_the_old_form() {
    let (services, warnings) = hyprspace(
        r#"
        "a": "/tcp/80",
        "bb": {"target": "/tcp/81"},
        "ccc": {"target": "/ip4/192.0.2.1/tcp/82/http", "acl": {}},
        "dddd": {"target": "/tcp/83", "acl": {"enableWhitelist": true, "whitelist": ["@site-c"], "blacklist": ["@site-b"]}},
        "eeeee": {"target": "/tcp/84", "acl": {"whitelist": ["@site-c"]}}
        "#,
    )
    .unwrap();
    let targets: Vec<_> = services.iter().map(|service| service.target.to_string()).collect();
    let own = |port: u16| format!("/ip4/127.0.0.1/tcp/{port}");
    assert_eq!(targets, [own(80), own(81), "/ip4/192.0.2.1/tcp/82".to_owned(), own(83), own(84)]);
    assert!(services[..3].iter().all(|service| service.allow.is_none() && service.deny.is_empty()));
    assert_eq!((&services[3].allow, &services[3].deny), (&Some(vec![PeerIndex(1)]), &vec![PeerIndex(0)]));
    assert_eq!(services[4].allow, None);
    assert!(warnings.len() == 1 && warnings[0].contains("enableWhitelist"), "{warnings:?}");
}

#[test]
fn services_with_one_identifier_are_refused_naming_both() {
    let error = toml("[services.http]\ntarget = \"/tcp/1\"\n[services.xttp]\ntarget = \"/tcp/2\"").unwrap_err();
    for part in ["services.xttp", "\"http\"", "17da", "rename"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn each_mistake_names_the_key_and_what_is_wrong() {
    let cases = [
        ("[services.s]", "services.s.target", "is missing"),
        ("[services.s]\ntarget = \"/udp/1\"", "services.s.target", "unsupported kind: \"udp\""),
        ("[services.s]\ntarget = \"/dns4/x/tcp/1\"", "services.s.target", "unsupported kind: \"dns4\""),
        ("[services.s]\ntarget = \"\"", "services.s.target", "names no port"),
        ("[services.s]\ntarget = \"8080\"", "services.s.target", "is not a multiaddress"),
        ("[services.s]\ntarget = \"/tcp/0\"", "services.s.target", "no valid port"),
        ("[services.s]\ntarget = \"/tcp/80/http\"", "services.s.target", "goes on"),
        ("[services.s]\ntarget = \"/ip4/::1/tcp/80\"", "services.s.target", "no valid IP address"),
        ("[services.s]\ntarget = \"/unix/\"", "services.s.target", "names no socket"),
        ("[services.s]\ntarget = \"/tcp/1\"\nallow = [\"@nobody\"]", "services.s.allow[0]", "is no configured peer"),
        ("[services.s]\ntarget = \"/tcp/1\"\ndeny = [\"\"]", "services.s.deny[0]", "is no configured peer"),
        ("[services.s]\ntarget = \"/tcp/1\"\ndeny = [\"12D3\"]", "services.s.deny[0]", "several peers"),
        ("[services.s]\ntarget = \"/tcp/1\"\nalow = []", "services.s.alow", "did you mean allow?"),
        ("[services]\ns = \"/tcp/1\"", "services.s", "must be a table"),
        ("[services.\"a.b\"]\ntarget = \"/tcp/1\"", "services.a.b", "no DNS label"),
    ];
    for (text, key, problem) in cases {
        let error = toml(text).unwrap_err();
        assert!(error.contains(key) && error.contains(problem), "{text}: {error}");
    }
    let error = hyprspace(r#""s": {"target": "/tcp/1", "acl": {"blacklist": ["@nobody"]}}"#).unwrap_err();
    assert!(error.contains("services.s.acl.blacklist[0]") && error.contains("is no configured peer"), "{error}");
}
