//! `ringlane route`: every inner prefix and the peer it goes to, shown and changed.

use std::process::ExitCode;

use ringlane_control::admin::status::RouteStatus;
use ringlane_control::admin::{AdminCommand, request};
use serde::Serialize;

use super::text::{self, Table};
use crate::cli::{InterfaceArgs, RouteAction, RouteAddArgs, RouteArgs, RouteDelArgs};

pub(crate) fn run(args: &RouteArgs) -> anyhow::Result<ExitCode> {
    match &args.action {
        RouteAction::Show(args) => show(args),
        RouteAction::Add(RouteAddArgs { net, peer, metric, node }) => {
            let command = AdminCommand::RouteAdd { net: net.clone(), peer: peer.clone(), metric: Some(*metric) };
            change(node, command)
        }
        RouteAction::Del(RouteDelArgs { net, peer, node }) => {
            change(node, AdminCommand::RouteDel { net: net.clone(), peer: peer.clone() })
        }
    }
}

/// What `route add --json` and `route del --json` print; people hear of failures only, as with `ip route`.
#[derive(Serialize)]
struct Changed<'a> {
    interface: &'a str,
    changed: bool,
}

fn change(args: &InterfaceArgs, command: AdminCommand) -> anyhow::Result<ExitCode> {
    request::<()>(&text::socket_of(&args.interface)?, command)?;
    text::print(args.output, &Changed { interface: &args.interface, changed: true }, String::new)?;
    Ok(ExitCode::SUCCESS)
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
    let mut table = Table::new(["PREFIX", "PEER", "METRIC", "STATE", "KIND", "KERNEL", "CARRIER"]);
    for route in routes {
        table.row([
            route.prefix.to_string(),
            text::name_or_id(&route.peer.name, &route.peer.id),
            route.metric.to_string(),
            state(route).to_owned(),
            kind(route).to_owned(),
            if route.installed { "installed" } else { "missing" }.to_owned(),
            text::carrier(route.carrier),
        ]);
    }
    table.to_string()
}

fn state(route: &RouteStatus) -> &'static str {
    match route {
        RouteStatus { withdrawn: true, .. } => "withdrawn",
        RouteStatus { active: true, .. } => "active",
        _ => "standby",
    }
}

fn kind(route: &RouteStatus) -> &'static str {
    match route {
        RouteStatus { builtin: true, .. } => "built-in",
        RouteStatus { added: true, .. } => "added",
        _ => "configured",
    }
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
            metric: 0,
            active: true,
            added: false,
            withdrawn: false,
        };
        let routes = [
            route("100.64.4.143/32", "site-b", true, true, Some(Carrier::Lane)),
            route("10.20.0.0/16", "site-b", false, true, Some(Carrier::Lane)),
            RouteStatus {
                metric: 100,
                active: false,
                added: true,
                ..route("10.20.0.0/16", "site-c", false, true, None)
            },
            RouteStatus { active: false, withdrawn: true, ..route("fd00:20::/64", "", false, false, None) },
        ];
        assert_eq!(
            for_people(&routes),
            "\
PREFIX           PEER         METRIC  STATE      KIND        KERNEL     CARRIER
100.64.4.143/32  site-b       0       active     built-in    installed  lane
10.20.0.0/16     site-b       0       active     configured  installed  lane
10.20.0.0/16     site-c       100     standby    added       installed  -
fd00:20::/64     12D3KooWBob  0       withdrawn  configured  missing    -
"
        );
        assert_eq!(for_people(&[]), "no routes\n");
    }
}
