//! `ringlane route show`: every inner prefix and the peer it goes to.

use std::process::ExitCode;

use ringlane_control::admin::status::RouteStatus;
use ringlane_control::admin::{AdminCommand, request};

use super::text::{self, Table};
use crate::cli::{InterfaceArgs, RouteAction, RouteArgs};

pub(crate) fn run(args: &RouteArgs) -> anyhow::Result<ExitCode> {
    match &args.action {
        RouteAction::Show(args) => show(args),
    }
}

fn show(args: &InterfaceArgs) -> anyhow::Result<ExitCode> {
    let routes: Vec<RouteStatus> = request(&text::socket_of(&args.interface)?, AdminCommand::Routes)?;
    text::print(args.output, &routes, || for_people(&routes))?;
    Ok(ExitCode::SUCCESS)
}

fn for_people(routes: &[RouteStatus]) -> String {
    if routes.is_empty() {
        return "no routes\n".to_owned();
    }
    let mut table = Table::new(["PREFIX", "PEER", "KIND", "KERNEL", "CARRIER"]);
    for route in routes {
        table.row([
            route.prefix.to_string(),
            text::name_or_id(&route.peer.name, &route.peer.id),
            if route.builtin { "built-in" } else { "configured" }.to_owned(),
            if route.installed { "installed" } else { "missing" }.to_owned(),
            text::carrier(route.carrier),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use ringlane_control::admin::status::{Carrier, RoutePeer};

    use super::*;

    #[test]
    fn routes_are_a_table_or_a_plain_no() {
        let route = |prefix: &str, name: &str, builtin, installed, carrier| RouteStatus {
            prefix: prefix.parse().unwrap(),
            peer: RoutePeer { name: name.to_owned(), id: "12D3KooWBob".to_owned() },
            builtin,
            installed,
            carrier,
        };
        let routes = [
            route("100.64.4.143/32", "site-b", true, true, Some(Carrier::Lane)),
            route("fd00:20::/64", "", false, false, None),
        ];
        assert_eq!(
            for_people(&routes),
            "\
PREFIX           PEER         KIND        KERNEL     CARRIER
100.64.4.143/32  site-b       built-in    installed  lane
fd00:20::/64     12D3KooWBob  configured  missing    -
"
        );
        assert_eq!(for_people(&[]), "no routes\n");
    }
}
