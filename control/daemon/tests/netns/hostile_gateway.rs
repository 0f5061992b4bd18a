//! A gateway that lies in UPnP: it sends the node elsewhere, or talks without end. In the lab of [`crate::portmap`].

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::lab::{Namespace, Site, wait_for};
use crate::node::{CONTROL_PORT, Node, Setup, field, name_of};
use crate::portmap::{Speaks, gateway_of, lab};

const GATEWAY: &str = "192.168.77.1";
/// Somebody else, whom the gateway would like the node to call on.
const THIRD: &str = "11.99.0.2:80";
const PORT: u16 = 5000;
/// Far more than a node has any use for, and far less than is sent to it.
const GROWN_KIB_MAX: u64 = 64 << 10;

/// What the gateway's description says of its service.
fn description(control: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><root><device><serviceList><service>\
         <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
         <controlURL>{control}</controlURL></service></serviceList></device></root>"
    )
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What is answered at a path, and what follows it again and again.
fn lie(path: &str) -> (Vec<u8>, &'static [u8]) {
    let elsewhere = format!("http://{THIRD}/");
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">\
                <!ENTITY c SYSTEM \"http://11.99.0.2:80/\">]>";
    match path {
        "/redirect" => (answer("301 Moved Permanently", &format!("Location: {elsewhere}\r\n"), ""), b""),
        "/elsewhere" => (answer("200 OK", "", &description(&format!("{elsewhere}ctl"))), b""),
        "/base" => {
            let moved = description("/ctl").replace("<root>", &format!("<root><URLBase>{elsewhere}</URLBase>"));
            (answer("200 OK", "", &moved.replace("/ctl", "//11.99.0.2:80/ctl")), b"")
        }
        "/bomb" => (answer("200 OK", "", &format!("{bomb}{}", description("&b;&c;"))), b""),
        "/endless" => (b"HTTP/1.1 200 OK\r\n\r\n<root>".to_vec(), b"<deeper>"),
        "/headers" => (b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n"),
        "/early" => (Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n"),
        "/ctl" => (b"HTTP/1.1 200 OK\r\n\r\n<s:Envelope><s:Body>".to_vec(), b"<NewExternalIPAddress>"),
        _ => (answer("200 OK", "", &description("/ctl")), b""),
    }
}

const PATHS: [&str; 8] =
    ["/redirect", "/elsewhere", "/base", "/bomb", "/endless", "/headers", "/early", "/description"];

/// The gateway: what it was asked for, and by whom it was not meant to be.
#[derive(Default)]
struct Gateway {
    asked: Mutex<BTreeSet<String>>,
    has_ended: AtomicBool,
}

impl Gateway {
    fn serve(self: &Arc<Self>, listener: TcpListener) {
        let gateway = Arc::clone(self);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let gateway = Arc::clone(&gateway);
                thread::spawn(move || gateway.talk(socket));
            }
        });
    }

    fn talk(&self, mut socket: TcpStream) {
        let (mut question, mut buffer) = (Vec::new(), [0; 4096]);
        while !question.windows(4).any(|end| end == b"\r\n\r\n") {
            match socket.read(&mut buffer) {
                Ok(read) if read > 0 => question.extend(&buffer[..read]),
                _ => return,
            }
        }
        let line = String::from_utf8_lossy(&question).into_owned();
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (first, again) = lie(&path);
        self.asked.lock().expect("no thread panics").insert(path);
        let more = again.repeat(1000);
        let mut goes_on = socket.write_all(&first).is_ok();
        while goes_on && !more.is_empty() && !self.has_ended.load(Ordering::Relaxed) {
            goes_on = socket.write_all(&more).is_ok();
        }
    }

    /// Answers each search with every lie there is.
    fn answer_searches(self: &Arc<Self>, socket: UdpSocket) {
        let gateway = Arc::clone(self);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !gateway.has_ended.load(Ordering::Relaxed) {
                let Ok((_, from)) = socket.recv_from(&mut bytes) else { continue };
                let own = PATHS.map(|path| format!("http://{GATEWAY}:{PORT}{path}"));
                let others =
                    [format!("http://{THIRD}/"), format!("http://{GATEWAY}@{THIRD}/"), "file:///etc/passwd".to_owned()];
                for location in others.iter().chain(&own) {
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: {location}\r\n\r\n"
                    );
                    let _ = socket.send_to(answer.as_bytes(), from);
                }
            }
        });
    }
}

fn listen(namespace: &Namespace, port: u16) -> TcpListener {
    namespace.enter(|| TcpListener::bind(("0.0.0.0", port))).expect("a port is free in a new namespace")
}

/// The most memory that a process ever had.
fn memory_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the node runs");
    let most = field(&status, "VmHWM:").and_then(|text| text.split(' ').next()).map(str::parse);
    most.expect("the kernel says so").expect("a number")
}

#[test]
fn a_gateway_that_lies_leads_the_node_to_nobody_and_costs_it_little() {
    let Some(lab) = lab(Speaks::Nothing) else { return };
    let gateway = lab.underlay();
    let third = listen(&lab.router(Site::B), 80);
    third.set_nonblocking(true).expect("a socket can be set so");
    let liar = Arc::new(Gateway::default());
    liar.serve(listen(&gateway, PORT));
    let searches = gateway.enter(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 1900)).expect("a port is free in a new namespace");
        socket.join_multicast_v4(&[239, 255, 255, 250].into(), &[192, 168, 77, 1].into()).expect("a group");
        socket
    });

    let mut setup = Setup::init(&lab, Site::A).workers(1);
    let listen = ["/ip4/0.0.0.0/tcp/8001", "/ip4/0.0.0.0/udp/8001/quic-v1"];
    setup.set("control", "listen", listen.map(str::to_owned).to_vec());
    let other = Setup::init(&lab, Site::B);
    let nowhere = format!("/ip4/192.168.77.99/tcp/{CONTROL_PORT}");
    setup.add_peer(&name_of(Site::B), &other.id, &[nowhere], &[]);
    setup.write();
    let mut node = Node::up(&setup);
    node.wait_until("it to be up", |status| !status.gateways().is_empty());
    let before = memory_kib(node.id());
    liar.answer_searches(searches);
    let all: BTreeSet<String> = PATHS.into_iter().chain(["/ctl"]).map(str::to_owned).collect();
    wait_for("every lie to be heard", || {
        let asked = liar.asked.lock().expect("no thread panics");
        (*asked == all).then_some(())
    });
    wait_for("the gateway to be given up for now", || {
        let gateway = gateway_of(&node)?;
        (gateway["state"] == "idle").then_some(())
    });
    let told = gateway_of(&node).expect("the node answers");
    assert!(told["mappings"].as_array().is_some_and(|all| all.iter().all(|mapping| mapping["external"].is_null())));
    let grown = memory_kib(node.id()) - before;
    assert!(grown < GROWN_KIB_MAX, "{grown} KiB");
    let called = third.accept();
    assert!(called.is_err(), "nobody was to be called on: {called:?}");
    liar.has_ended.store(true, Ordering::Relaxed);
}
