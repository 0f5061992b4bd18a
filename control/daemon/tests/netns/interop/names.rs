//! What the nodes' name servers say: the same names and addresses, of both kinds of nodes.

use std::net::UdpSocket;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use ringlane_shared::dns::listen_address;

use super::{Kind, Member, lab_of, matrix, trust_all};
use crate::lab::{PATIENCE, Site, wait_for};

/// The answer's code, and owner and content of each of its records.
fn ask(member: &Member, name: &str, asked: RecordType) -> (ResponseCode, Vec<(String, String)>) {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(Name::from_ascii(name).expect("a name"), asked));
    let question = question.to_vec().expect("a question can be written");
    let server = listen_address(&member.interface);
    let answer = member.router.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        socket.connect(server).expect("the loopback is up");
        socket.set_read_timeout(Some(PATIENCE / 100)).expect("a timeout can be set");
        let mut answer = [0; 2048];
        wait_for(&format!("an answer for {name}"), || {
            socket.send(&question).ok()?;
            let bytes = socket.recv(&mut answer).ok()?;
            Some(answer[..bytes].to_vec())
        })
    });
    let answer = Message::from_vec(&answer).expect("an answer is well formed");
    let records = answer.answers.iter().map(|record| (record.name.to_string(), record.data.to_string()));
    (answer.metadata.response_code, records.collect())
}

/// The vectors of the specification: base36 names, built-in addresses, the address of the service `example`.
fn names_have_the_addresses_of_the_specification([kind]: [Kind; 1]) {
    let Some((_lab, mut members)) = lab_of([kind, kind]) else { return };
    trust_all(&mut members);
    let node = members[0].up();
    wait_for("the node to answer", || node.ask("status").ok());
    let [a, _] = &members;
    assert_eq!(a.site, Site::A);
    let zone = format!("{}.hyprspace.", a.interface);
    let base36 = "k51qzi5uqu5dkxtt5jitjh0pdwwdjaq2d6omasr3ust9yokfv3fbpfxgbwdran";
    let (v4, v6) = ("100.64.4.143", "fd00:6879:7072:7370:6163:6500:b497:d158");
    // Hyprspace answers both whatever was asked, Ringlane what was asked.
    let only = |wanted, mut records: Vec<(String, String)>| {
        if kind == Kind::Rust {
            records.retain(|(_, content)| {
                content.ends_with(&zone) || content.contains(':') == (wanted == RecordType::AAAA)
            });
        }
        records
    };
    let owned = |records: &[(&str, &str)]| -> Vec<(String, String)> {
        records.iter().map(|(owner, content)| (format!("{owner}.{zone}"), (*content).to_owned())).collect()
    };
    let alias = |prefix: &str| format!("{prefix}{base36}.{zone}");
    for asked in [RecordType::A, RecordType::AAAA] {
        let by_name = owned(&[("peerb", &alias("")), (base36, v4), (base36, v6)]);
        assert_eq!(ask(a, &format!("peerb.{zone}"), asked), (ResponseCode::NoError, only(asked, by_name.clone())));
        assert_eq!(ask(a, &format!("PeerB.{zone}"), asked), (ResponseCode::NoError, only(asked, by_name)));
        let by_id = owned(&[(base36, v4), (base36, v6)]);
        assert_eq!(ask(a, &alias(""), asked), (ResponseCode::NoError, only(asked, by_id)));
        let service = owned(&[
            ("example.peerb", &alias("example.")),
            (&format!("example.{base36}"), "fd00:6879:7072:7370:7376:b497:d158:a3dd"),
        ]);
        assert_eq!(ask(a, &format!("example.peerb.{zone}"), asked), (ResponseCode::NoError, only(asked, service)));
    }
    let (code, records) = ask(a, &format!("nobody.{zone}"), RecordType::A);
    let expected = if kind == Kind::Rust { ResponseCode::NXDomain } else { ResponseCode::NoError };
    assert_eq!((code, records), (expected, Vec::new()));
    assert_eq!(ask(a, "example.org.", RecordType::A).0, ResponseCode::Refused);
}

matrix!(names_have_the_addresses_of_the_specification: rust [Rust], go [Go], old_go [OldGo]);
