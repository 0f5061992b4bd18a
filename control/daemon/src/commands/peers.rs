//! `ringlane peers`: every libp2p connection of a running node.

use std::process::ExitCode;

use ringlane_control::admin::status::{ConnectionStatus, Direction};
use ringlane_control::admin::{AdminCommand, request};

use super::text::{self, Table};
use crate::cli::InterfaceArgs;

pub(crate) fn run(args: &InterfaceArgs) -> anyhow::Result<ExitCode> {
    let connections: Vec<ConnectionStatus> = request(&text::socket_of(&args.interface)?, AdminCommand::Peers)?;
    text::print(args.output, &connections, || for_people(&connections))?;
    Ok(ExitCode::SUCCESS)
}

fn for_people(connections: &[ConnectionStatus]) -> String {
    if connections.is_empty() {
        return "no connections\n".to_owned();
    }
    let mut table = Table::new(["PEER", "ID", "DIRECTION", "TRANSPORT", "RTT", "AGE", "REMOTE"]);
    for connection in connections {
        let direction = match connection.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        table.row([
            connection.name.clone(),
            connection.id.clone(),
            direction.to_owned(),
            connection.transport.clone(),
            text::rtt(connection.rtt_us),
            text::span(connection.age_s),
            connection.remote.clone(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_a_table_or_a_plain_no() {
        let connection = |name: &str, direction, rtt_us| ConnectionStatus {
            id: "12D3KooWBob".to_owned(),
            name: name.to_owned(),
            remote: "/ip4/10.201.0.2/udp/8001/quic-v1".to_owned(),
            direction,
            transport: "quic".to_owned(),
            rtt_us,
            age_s: 61,
        };
        let connections =
            [connection("site-b", Direction::Outbound, Some(1_500)), connection("", Direction::Inbound, None)];
        assert_eq!(
            for_people(&connections),
            "\
PEER    ID           DIRECTION  TRANSPORT  RTT     AGE        REMOTE
site-b  12D3KooWBob  outbound   quic       1.5 ms  1 min 1 s  /ip4/10.201.0.2/udp/8001/quic-v1
-       12D3KooWBob  inbound    quic       -       1 min 1 s  /ip4/10.201.0.2/udp/8001/quic-v1
"
        );
        assert_eq!(for_people(&[]), "no connections\n");
    }
}
