//! Every wrong configuration is refused whole, by name, before anything is touched.

use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};

use toml::Value as Toml;

use crate::lab::{Lab, PATIENCE, Site, wait_for};
use crate::node::{CONTROL_PORT, LANE_PORT, RINGLANE, Setup};

/// A configuration of site A that trusts B, and so is right until a test changes it.
fn right(lab: &Lab) -> Setup {
    let mut setup = Setup::init(lab, Site::A);
    setup.trust(&Setup::init(lab, Site::B));
    setup
}

/// Runs a command that must fail by itself, and returns what it said.
fn refused(command: &mut Command) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    let deadline = std::time::Instant::now() + PATIENCE;
    // `wait_for` would panic and leave the child running.
    let ended = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(ended) => break Some(ended),
            None if std::time::Instant::now() > deadline => break None,
            None => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    let _ = child.kill();
    let Output { stdout, stderr, .. } = child.wait_with_output().expect("a child's output can be read");
    let said = String::from_utf8_lossy(&stderr).into_owned();
    let ended = ended.unwrap_or_else(|| panic!("not refused: {command:?} runs on\n{said}"));
    assert!(!ended.success(), "not refused: {command:?}\n{said}{}", String::from_utf8_lossy(&stdout));
    assert!(ended.code().is_some_and(|code| code != 101), "refused by a crash ({ended}): {command:?}\n{said}");
    said
}

/// Asserts that `up` refuses the configuration, saying each of `names`, and touches neither kernel nor files.
fn up_refuses(setup: &Setup, mut up: Command, names: &[&str]) {
    let before = setup.router.kernel_state();
    let said = refused(&mut up);
    for name in names {
        assert!(said.contains(name), "the message does not name {name:?}:\n{said}");
    }
    assert_eq!(setup.router.kernel_state(), before, "a refused configuration touched the kernel");
    assert!(!setup.socket().exists(), "a refused configuration left a socket");
}

/// Asserts that both `check` and `up` refuse the file as it stands, naming it and each of `names`.
fn file_refused(setup: &Setup, names: &[&str]) {
    setup.write();
    let file = setup.file.to_str().expect("a path of ours is UTF-8");
    let names: Vec<_> = names.iter().copied().chain([file]).collect();
    let said = refused(Command::new(RINGLANE).arg("check").arg("--config").arg(&setup.file));
    for name in &names {
        assert!(said.contains(name), "the message of `check` does not name {name:?}:\n{said}");
    }
    up_refuses(setup, setup.up_command(), &names);
}

fn first_peer(setup: &mut Setup) -> &mut toml::Table {
    setup.settings["peers"][0].as_table_mut().expect("the setup has a peer")
}

fn list<const N: usize>(items: [&str; N]) -> Toml {
    Toml::Array(items.map(|item| Toml::String(item.into())).to_vec())
}

#[test]
fn the_configuration_that_the_others_spoil_is_right() {
    let Some(lab) = Lab::up(2) else { return };
    let setup = right(&lab);
    setup.write();
    crate::lab::succeed(Command::new(RINGLANE).arg("check").arg("--config").arg(&setup.file));
    let mut node = crate::node::Node::up(&setup);
    node.wait_until("the node runs", |status| status.peer(Site::B).is_some());
    assert!(node.terminate().success());
}

#[test]
fn an_unknown_key_is_refused_wherever_it_stands() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    setup.settings.insert("colour".into(), "blue".into());
    file_refused(&setup, &["colour"]);
    setup.settings.remove("colour");
    setup.set("dataplane", "wrokers", 2);
    file_refused(&setup, &["wrokers"]);
    setup.settings["dataplane"].as_table_mut().unwrap().remove("wrokers");
    first_peer(&mut setup).insert("adresses".into(), list([]));
    file_refused(&setup, &["adresses"]);
}

#[test]
fn a_core_that_is_not_there_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    setup.set("dataplane", "cores", vec![Toml::Integer(1023)]);
    file_refused(&setup, &["dataplane.cores[0]", "1023"]);
}

#[test]
fn a_peer_listed_twice_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    let id = first_peer(&mut setup)["id"].as_str().unwrap().to_owned();
    setup.add_peer("again", &id, &[], &[]);
    file_refused(&setup, &["peers", &id]);
}

#[test]
fn our_own_id_among_the_peers_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    let id = setup.id.clone();
    setup.add_peer("myself", &id, &[], &[]);
    file_refused(&setup, &["peers", &id]);
}

#[test]
fn one_prefix_twice_for_one_peer_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    first_peer(&mut setup).insert("routes".into(), list(["10.20.0.0/16", "10.20.0.0/16"]));
    file_refused(&setup, &["routes", "10.20."]);
}

#[test]
fn a_malformed_prefix_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    for wrong in ["10.20.0.0/33", "10.20.0/16", "fd00:20::/129", "network"] {
        first_peer(&mut setup).insert("routes".into(), list([wrong]));
        file_refused(&setup, &["routes", wrong]);
    }
}

#[test]
fn a_malformed_id_or_address_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    first_peer(&mut setup).insert("addresses".into(), list(["/ip4/10.201.0.2/udp"]));
    file_refused(&setup, &["addresses", "/ip4/10.201.0.2/udp"]);
    first_peer(&mut setup).insert("addresses".into(), list([]));
    first_peer(&mut setup).insert("id".into(), "12D3KooWnobody".into());
    file_refused(&setup, &["id", "12D3KooWnobody"]);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let Some(lab) = Lab::up(2) else { return };
    let setup = right(&lab);
    setup.write();
    let key_file = setup.key_file();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    up_refuses(&setup, setup.up_command(), &[key_file.to_str().unwrap(), "600"]);
}

#[test]
fn a_port_in_use_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let setup = right(&lab);
    setup.write();
    for (key, port) in
        [("dataplane.port", LANE_PORT), ("dataplane.port", LANE_PORT + 1), ("control.listen", CONTROL_PORT)]
    {
        let taken = setup.router.enter(|| UdpSocket::bind((Site::A.underlay(), port))).expect("the port is free");
        let file = setup.file.to_str().expect("a path of ours is UTF-8");
        up_refuses(&setup, setup.up_command(), &[file, key, &port.to_string()]);
        drop(taken);
    }
}

#[test]
fn a_missing_tun_device_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let setup = right(&lab);
    setup.write();
    let mut up = setup.router.command("unshare");
    up.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" up --config \"$1\"", RINGLANE]);
    up.arg(&setup.file);
    up_refuses(&setup, up, &["/dev/net/tun", "modprobe tun"]);
}

#[test]
fn an_interface_name_that_exists_is_refused() {
    let Some(lab) = Lab::up(2) else { return };
    let setup = right(&lab);
    setup.write();
    setup.router.run(&format!("ip link add name {} type veth peer name other", setup.interface));
    up_refuses(&setup, setup.up_command(), &["interface", &setup.interface]);
}

#[test]
fn a_network_the_host_is_directly_connected_to_is_not_taken_over() {
    let Some(lab) = Lab::up(2) else { return };
    let mut setup = right(&lab);
    for connected in Site::A.networks() {
        first_peer(&mut setup).insert("routes".into(), list([&connected]));
        setup.write();
        up_refuses(&setup, setup.up_command(), &["routes", &connected]);
    }
}

#[test]
fn a_second_node_on_the_same_configuration_is_refused_and_the_first_runs_on() {
    let Some(lab) = Lab::up(2) else { return };
    let setup = right(&lab);
    setup.write();
    let mut node = crate::node::Node::up(&setup);
    node.wait_until("the node runs", |status| status.peer(Site::B).is_some());
    let said = refused(&mut setup.up_command());
    assert!(said.contains(&setup.interface), "the message does not name the interface:\n{said}");
    wait_for("the first node to answer", || node.try_status());
    assert!(setup.router.has_interface(&setup.interface));
}
