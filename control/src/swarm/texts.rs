//! Text records, which the system's resolver has no call for: `/dnsaddr` needs them.
//!
//! A stub resolver of the smallest kind: it asks the name servers of `resolv.conf`, as that file is at the moment, over UDP
//! and, when an answer is cut short, over TCP. It blocks; `names` runs it on a thread and nobody waits for it for ever.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;
/// Name servers that are asked, one after the other; the C library's bound.
const SERVERS_MAX: usize = 3;
/// How long one of them may take.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// What we take over UDP without fragments, as the DNS flag day of 2020 settled.
const PAYLOAD_BYTES: u16 = 1232;

/// The text records of `host`, each with its strings put together.
pub(super) fn look_up(host: &str) -> io::Result<Vec<String>> {
    let servers = name_servers(&fs::read_to_string(RESOLV_CONF)?);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no name server is configured");
    for server in servers {
        match ask(server, host) {
            Ok(texts) => return Ok(texts),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn name_servers(conf: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let ip = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        Some(SocketAddr::new(ip.parse().ok()?, DNS_PORT))
    };
    conf.lines().filter_map(server).take(SERVERS_MAX).collect()
}

fn ask(server: SocketAddr, host: &str) -> io::Result<Vec<String>> {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).map_err(io::Error::other)?;
    let id = u16::from_ne_bytes(id);
    let question = question(id, host)?;
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(SERVER_TIMEOUT))?;
    socket.send(&question)?;
    let mut buffer = vec![0; usize::from(PAYLOAD_BYTES)];
    let length = socket.recv(&mut buffer)?;
    match texts(id, &buffer[..length])? {
        Some(texts) => Ok(texts),
        None => texts(id, &over_tcp(server, &question)?)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is cut short")),
    }
}

fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, SERVER_TIMEOUT)?;
    stream.set_read_timeout(Some(SERVER_TIMEOUT))?;
    stream.set_write_timeout(Some(SERVER_TIMEOUT))?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn question(id: u16, host: &str) -> io::Result<Vec<u8>> {
    let mut name = Name::from_ascii(host).map_err(io::Error::other)?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::TXT));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD_BYTES);
    message.set_edns(edns);
    message.to_vec().map_err(io::Error::other)
}

/// What an answer says; nothing if it was cut short.
fn texts(id: u16, answer: &[u8]) -> io::Result<Option<Vec<String>>> {
    let message = Message::from_vec(answer).map_err(io::Error::other)?;
    if message.metadata.id != id {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"));
    }
    if message.metadata.truncation {
        return Ok(None);
    }
    let text = |data: &RData| match data {
        RData::TXT(text) => String::from_utf8(text.txt_data.concat()).ok(),
        _ => None,
    };
    Ok(Some(message.answers.iter().filter_map(|record| text(&record.data)).collect()))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::TXT;

    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_reads_them() {
        let conf =
            "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\nnameserver  2001:db8::1 \nnameserver x\n";
        assert_eq!(name_servers(conf), ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
    }

    #[test]
    fn a_text_is_one_whole_and_an_answer_belongs_to_its_question() {
        let asked = Message::from_vec(&question(7, "_dnsaddr.b.example").unwrap()).unwrap();
        assert_eq!(asked.queries[0].query_type(), RecordType::TXT);
        let mut answer = asked.into_response();
        let name = Name::from_ascii("_dnsaddr.b.example.").unwrap();
        let data = RData::TXT(TXT::new(vec!["dnsaddr=".into(), "/ip4/192.0.2.1".into()]));
        answer.add_answer(Record::from_rdata(name, 60, data));
        let bytes = answer.to_vec().unwrap();
        assert_eq!(texts(7, &bytes).unwrap(), Some(vec!["dnsaddr=/ip4/192.0.2.1".to_owned()]));
        assert!(texts(8, &bytes).is_err());
        answer.metadata.truncation = true;
        assert_eq!(texts(7, &answer.to_vec().unwrap()).unwrap(), None);
        assert!(texts(7, b"short").is_err());
    }
}
