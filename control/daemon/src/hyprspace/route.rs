//! What `hyprspace route` is asked for, and Hyprspace's words where it cannot be done.

use ipnet::IpNet;
use ringlane_control::admin::status::RouteStatus;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    Show,
    /// Route a network, its host bits cleared, to the peer of this id.
    Add {
        prefix: IpNet,
        peer: String,
    },
    /// Route a network no more.
    Del {
        prefix: IpNet,
    },
}

/// Reads `show`, `add NET PEER` or `del NET`. `peers` are names and ids in the configuration's order.
pub(super) fn asked(words: &[String], peers: &[(&str, &str)], routes: &[RouteStatus]) -> Result<Asked, String> {
    let (action, arguments) = words.split_first().ok_or("no such action")?;
    let is_routed = |prefix: &IpNet| routes.iter().any(|route| route.prefix == *prefix);
    match (action.as_str(), arguments) {
        ("show", _) => Ok(Asked::Show),
        ("add", [network, peer]) => {
            let prefix = prefix(network)?;
            let peer = find(peer, peers)?.ok_or("no such peer")?.to_owned();
            if is_routed(&prefix) {
                return Err("file exists".to_owned());
            }
            Ok(Asked::Add { prefix, peer })
        }
        ("add", _) => Err("expected exactly 2 arguments".to_owned()),
        ("del", [network]) => {
            let prefix = prefix(network)?;
            if is_routed(&prefix) { Ok(Asked::Del { prefix }) } else { Err("no such process".to_owned()) }
        }
        ("del", _) => Err("expected exactly 1 argument".to_owned()),
        _ => Err("no such action".to_owned()),
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>().map(|network| network.trunc()).map_err(|_| format!("invalid CIDR address: {text}"))
}

/// The id of `@name`, or the only one that begins so.
fn find<'p>(reference: &str, peers: &[(&str, &'p str)]) -> Result<Option<&'p str>, String> {
    if let Some(wanted) = reference.strip_prefix('@') {
        return Ok(peers.iter().find(|(name, _)| *name == wanted).map(|(_, id)| *id));
    }
    if reference.is_empty() {
        return Ok(None);
    }
    let mut matching = peers.iter().map(|(_, id)| *id).filter(|id| id.starts_with(reference));
    let (first, others) = (matching.next(), matching.count());
    if others > 0 {
        return Err(format!("ambiguous peer prefix {reference:?} matches {} peers", others + 1));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    const PEERS: [(&str, &str); 3] = [("peerB", "12D3KooWN"), ("peerb", "12D3KooWP"), ("", "QmbLHA")];

    fn ask(line: &str) -> Result<Asked, String> {
        let peer = json!({ "name": "peerB", "id": "12D3KooWN" });
        let route = json!({
            "prefix": "10.77.1.0/24", "peer": peer, "builtin": false, "installed": true, "carrier": null,
        });
        let route = from_value(route).unwrap();
        asked(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), &PEERS, &[route])
    }

    #[test]
    fn requests_are_understood() {
        let add = |prefix: &str, peer: &str| Ok(Asked::Add { prefix: prefix.parse().unwrap(), peer: peer.to_owned() });
        assert_eq!(ask("show"), Ok(Asked::Show));
        assert_eq!(ask("show x y"), Ok(Asked::Show));
        assert_eq!(ask("add 10.77.2.9/24 @peerB"), add("10.77.2.0/24", "12D3KooWN"));
        assert_eq!(ask("add 10.77.2.9/24 @peerb"), add("10.77.2.0/24", "12D3KooWP"));
        assert_eq!(ask("add fd00:1::1/64 12D3KooWP"), add("fd00:1::/64", "12D3KooWP"));
        assert_eq!(ask("add 0.0.0.0/0 Qm"), add("0.0.0.0/0", "QmbLHA"));
        assert_eq!(ask("del 10.77.1.7/24"), Ok(Asked::Del { prefix: "10.77.1.0/24".parse().unwrap() }));
    }

    #[test]
    fn refusals_are_in_hyprspaces_words() {
        for (line, text) in [
            ("nosuch", "no such action"),
            ("Show", "no such action"),
            ("add", "expected exactly 2 arguments"),
            ("add 10.77.3.0/24", "expected exactly 2 arguments"),
            ("add 10.77.3.0/24 @peerB x", "expected exactly 2 arguments"),
            ("del", "expected exactly 1 argument"),
            ("del 10.77.1.0/24 x", "expected exactly 1 argument"),
            ("add 10.77.2.0 @peerB", "invalid CIDR address: 10.77.2.0"),
            ("add 10.77.2.0 @nobody", "invalid CIDR address: 10.77.2.0"),
            ("del xyz", "invalid CIDR address: xyz"),
            ("add 10.77.2.0/24 @nobody", "no such peer"),
            ("add 10.77.2.0/24 nobody", "no such peer"),
            ("add 10.77.2.0/24 ", "no such peer"),
            ("add 10.77.2.0/24 12D3", "ambiguous peer prefix \"12D3\" matches 2 peers"),
            ("add 10.77.1.0/24 @peerB", "file exists"),
            ("del 10.77.2.0/24", "no such process"),
        ] {
            assert_eq!(ask(line), Err(text.to_owned()), "{line}");
        }
    }
}
