//! Lanes move to a better path when there is one, and away from it when it is gone.

use std::time::Duration;

use crate::lab::{Lab, SILENCE, Site};
use crate::moves::{are_at, direct, lanes_are_the_same, moves, wherever};
use crate::stream::Stream;

/// How long traffic may stand still: that a path swallows everything is known within a second, and this machine is busy.
const BACK_WITHIN: Duration = Duration::from_secs(3);

const FAR: &str = "10.201.0.";
const NEAR: &str = "10.213.0.";

/// Makes the routers' underlay one that is routed: neither is in the other's network.
pub(crate) fn route_underlay(lab: &Lab) {
    for (site, other) in [(Site::A, Site::B), (Site::B, Site::A)] {
        let (router, own) = (lab.router(site), site.underlay());
        router.run("ip -6 address flush dev underlay scope global");
        router.run(&format!("ip address add {own}/32 dev underlay"));
        router.run(&format!("ip address del {own}/24 dev underlay"));
        router.run(&format!("ip route add {}/32 dev underlay src {own}", other.underlay()));
    }
}

/// Puts both routers on a network of their own, 10.213.0.0/24.
pub(crate) fn plug_in(lab: &Lab) {
    let [a, b] = [lab.router(Site::A), lab.router(Site::B)];
    let other = format!("{}n", lab.prefix());
    a.run(&format!("ip link add near type veth peer name {other}"));
    a.run(&format!("ip link set {other} netns {}", b.name()));
    b.run(&format!("ip link set {other} name near"));
    for (router, number) in [(&a, 1), (&b, 2)] {
        router.run(&format!("ip address add {NEAR}{number}/24 dev near"));
        router.run("ip link set near up");
    }
}

#[test]
fn lanes_move_to_a_local_network_that_both_nodes_come_onto_and_back_when_it_is_gone() {
    let Some(lab) = Lab::up(2) else { return };
    route_underlay(&lab);
    let nodes = direct(&wherever(&lab));
    are_at(&nodes, FAR, FAR).expect("there is but one way");
    let stream = Stream::start(&lab);
    let near = || are_at(&nodes, NEAR, NEAR);
    let far = || are_at(&nodes, FAR, FAR);
    let found = stream.silence_of("both come onto a local network", || plug_in(&lab), near);
    assert!(found.iter().all(|silence| *silence < BACK_WITHIN), "{found:?}");
    let unplug = || drop(lab.router(Site::A).run("ip link del near"));
    let gone = stream.silence_of("the local network is gone", unplug, far);
    assert!(gone.iter().all(|silence| *silence < BACK_WITHIN), "{gone:?}");

    let again = stream.silence_of("it is there again", || plug_in(&lab), near);
    assert!(again.iter().all(|silence| *silence < BACK_WITHIN), "{again:?}");
    let swallow = || {
        for site in [Site::A, Site::B] {
            let router = lab.router(site);
            router.run("nft add table ip swallow");
            router.run("nft add chain ip swallow in { type filter hook prerouting priority -400 ; }");
            router.run("nft add rule ip swallow in iifname near drop");
        }
    };
    let swallowed = stream.silence_of("the local network swallows everything", swallow, far);
    assert!(swallowed.iter().all(|silence| *silence < BACK_WITHIN), "{swallowed:?}");

    let before = moves(&nodes);
    std::thread::sleep(SILENCE);
    assert_eq!(moves(&nodes), before, "nothing goes to and fro");
    assert!(stream.stop() > 0);
    lanes_are_the_same(&nodes);
}
