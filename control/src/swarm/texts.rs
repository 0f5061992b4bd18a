//! Text records, which the system's resolver has no call for: `/dnsaddr` needs them.
//!
//! A stub resolver of the smallest kind: it asks the name servers of `resolv.conf`, as that file is at the moment, over UDP
//! and, when an answer is cut short, over TCP. It blocks; `names` runs it on a thread and nobody waits for it for ever.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use socket2::Type;

use crate::underlay;

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
    let socket = underlay::socket(server, Type::DGRAM)?;
    socket.bind(&SocketAddr::new(any, 0).into())?;
    let socket = UdpSocket::from(socket);
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
    let socket = underlay::socket(server, Type::STREAM)?;
    socket.connect_timeout(&server.into(), SERVER_TIMEOUT)?;
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(SERVER_TIMEOUT))?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat())?;
    let deadline = Instant::now() + SERVER_TIMEOUT;
    let mut length = [0; 2];
    read_until(deadline, &mut stream, &mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    read_until(deadline, &mut stream, &mut answer)?;
    Ok(answer)
}

/// Fills `buffer`, however few bytes come at a time: a server that sends one now and then does not keep the thread.
fn read_until(deadline: Instant, stream: &mut TcpStream, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => buffer = &mut buffer[bytes..],
        }
    }
    Ok(())
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
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

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
    fn a_server_that_answers_one_byte_at_a_time_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let start = Instant::now();
        let sending = thread::spawn(move || {
            while server.write_all(&[7]).is_ok() && start.elapsed().as_secs() < 10 {
                thread::sleep(Duration::from_millis(5));
            }
        });
        let error = read_until(start + Duration::from_millis(100), &mut stream, &mut [0; 65_535]).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(stream);
        sending.join().unwrap();
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
