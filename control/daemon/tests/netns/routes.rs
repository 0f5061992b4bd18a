//! Networks behind peers, changed while nodes run.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use toml::Value as Toml;

use crate::lab::{Lab, Site, succeed, wait_for};
use crate::node::{Node, RINGLANE, Setup, mesh, name_of, up_and_direct};

/// `ringlane route ...` for a site's node.
pub(crate) fn route(setup: &Setup, arguments: &[&str]) -> Command {
    let mut command = Command::new(RINGLANE);
    command.arg("route").args(arguments).args(["--interface", &setup.interface]);
    command
}

/// What `route show --json` says.
fn shown(setup: &Setup) -> Vec<Value> {
    let shown = succeed(route(setup, &["show"]).arg("--json"));
    serde_json::from_slice(&shown.stdout).expect("a list of routes")
}

/// The routers of a prefix with their state, the active one first.
fn routers(setup: &Setup, prefix: &str) -> Vec<(String, bool, bool)> {
    let routes = shown(setup).into_iter().filter(|route| route["prefix"] == prefix);
    let state = |route: Value| {
        let name = route["peer"]["name"].as_str().expect("a name").to_owned();
        (name, route["active"] == true, route["withdrawn"] == true)
    };
    routes.map(state).collect()
}

/// Gives the first peers of a configuration these routes, and writes it.
pub(crate) fn set_routes<const N: usize>(setup: &mut Setup, routes: [Vec<Toml>; N]) {
    for (peer, routes) in routes.into_iter().enumerate() {
        let peer = setup.settings["peers"][peer].as_table_mut().expect("a peer is a table");
        peer.insert("routes".into(), Toml::Array(routes));
    }
    setup.write();
}

fn refused(command: &mut Command, said: &str) {
    let output = command.output().expect("the command can be run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(said), "{command:?} does not say {said:?}: {error}");
}

#[test]
fn a_route_is_added_and_deleted_at_run_time_and_what_cannot_be_is_said() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    set_routes(&mut setups[0], [Vec::new()]);
    let before = setups[0].router.run("ip route") + &setups[0].router.run("ip -6 route");
    let mut nodes = up_and_direct(&setups, [1, 1]);
    let a = &setups[0];
    let bare = setups[0].router.run("ip route");
    let name = format!("@{}", name_of(Site::B));
    succeed(&mut route(a, &["add", "10.20.3.4/16", &name]));
    succeed(&mut route(a, &["add", "fd00:20::/64", &setups[1].id[..20], "--metric", "7"]));
    for address in Site::B.host() {
        lab.host(Site::A).ping(address);
    }
    assert_eq!(routers(a, "10.20.0.0/16"), [(name_of(Site::B), true, false)], "host bits do not count");

    a.router.run("ip route add 10.77.0.0/16 via 10.10.0.2 metric 500");
    for (arguments, said) in [
        (["add", "10.20.0.0/16", &name], "already routed to this peer"),
        (["add", "10.77.0.0/16", &name], "already has a route to it (via 10.10.0.2 dev lan metric 500"),
        (["add", "10.10.0.0/17", &name], "directly connected by lan"),
        (["add", "10.5.0.1", &name], "has no prefix length"),
        (["add", "10.5.0.0/16", "@nobody"], "no such peer"),
        (["del", "10.5.0.0/16", &name], "there is no route to 10.5.0.0/16"),
    ] {
        refused(&mut route(a, &arguments), said);
    }
    a.router.run("ip route del 10.77.0.0/16");
    assert_eq!(shown(a).len(), 4, "a refused route left something");

    succeed(&mut route(a, &["del", "10.20.0.0/16"]));
    succeed(&mut route(a, &["del", "fd00:20::/64", &name]));
    assert_eq!(a.router.run("ip route"), bare);
    assert!(nodes[0].terminate().success());
    assert_eq!(a.router.run("ip route") + &a.router.run("ip -6 route"), before);
}

#[test]
fn the_second_router_of_a_prefix_takes_over_from_a_dead_one_and_gives_it_back() {
    let Some(lab) = Lab::up(3) else { return };
    let mut setups = mesh(&lab, [(Site::A, 1), (Site::B, 1), (Site::C, 1)]);
    let both = |metric: i64| {
        let net = ("net".to_owned(), Toml::String("10.99.0.0/24".into()));
        vec![Toml::Table([net, ("metric".to_owned(), metric.into())].into_iter().collect())]
    };
    set_routes(&mut setups[0], [both(10), both(20)]);
    for router in [lab.router(Site::B), lab.router(Site::C)] {
        router.run("ip address add 10.99.0.1/32 dev lo");
    }
    let mut nodes = setups.each_ref().map(Node::up);
    nodes[0].wait_direct(&[Site::B, Site::C], 1);
    nodes[1].wait_direct(&[Site::A], 1);
    nodes[2].wait_direct(&[Site::A], 1);
    let active = |site: Site| {
        wait_for(&format!("{site:?} to carry the prefix"), || {
            let active = routers(&setups[0], "10.99.0.0/24").first().cloned();
            (active == Some((name_of(site), true, false))).then_some(())
        });
    };
    let address = [10, 99, 0, 1].into();
    active(Site::B);
    lab.host(Site::A).ping(address);

    nodes[1].signal(Signal::KILL);
    active(Site::C);
    lab.host(Site::A).ping(address);
    assert_eq!(setups[0].router.run("ip route show 10.99.0.0/24").lines().count(), 1, "one kernel route for both");

    nodes[1].up_again(&setups[1]);
    active(Site::B);
    lab.host(Site::A).ping(address);
}

#[test]
fn a_route_is_withdrawn_while_the_host_is_connected_to_its_network() {
    let Some(lab) = Lab::up(2) else { return };
    let setups = mesh(&lab, [(Site::A, 1), (Site::B, 1)]);
    let _nodes = up_and_direct(&setups, [1, 1]);
    let (a, router) = (&setups[0], lab.router(Site::A));
    let ours = || router.run("ip route show proto 201 10.20.0.0/16");
    assert!(ours().contains(&a.interface));
    router.run("ip address add 10.20.9.9/16 dev lan");
    wait_for("the route to be withdrawn", || {
        (routers(a, "10.20.0.0/16") == [(name_of(Site::B), false, true)] && ours().is_empty()).then_some(())
    });
    router.run("ip address del 10.20.9.9/16 dev lan");
    wait_for("the route to come back", || {
        (routers(a, "10.20.0.0/16") == [(name_of(Site::B), true, false)] && ours().contains(&a.interface)).then_some(())
    });
    lab.host(Site::A).ping(Site::B.host_v4().into());
}
