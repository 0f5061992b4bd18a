//! Whole nodes on a real kernel: `ringlane` processes in the network namespaces of `scripts/lab`.
//!
//! | Module | What it is |
//! |---|---|
//! | [`lab`] | a lab of namespaces that vanishes with its owner, and threads that enter a namespace |
//! | [`node`] | a node's configuration, process, log and status |
//! | [`traffic`] | flows between hosts whose every byte and order is checked |
//! | [`datagrams`] | UDP flows that keep a link busy, and what became of each datagram |
//! | [`stream`] | traffic that goes on while something happens, and its longest silence |
//! | [`delay`] | a link that delays, loses, repeats and mixes up packets |
//! | [`wire`] | what an attacker on the underlay can do: watch, inject, send garbage |
//! | [`nat`] | nodes behind NATs of every kind, and the table of `docs/nat.md` |
//! | [`interop`] | networks of Ringlane and Hyprspace nodes |
//! | the others | the tests |
//!
//! `RINGLANE_TEST_ENGINE=epoll` runs the nodes of all of them on epoll.
//!
//! They need root and `ip`; without, each says so and passes, unless `RINGLANE_REQUIRE_NETNS=1` (as `scripts/check`
//! sets) makes that a failure. Every lab has names of its own, so tests run side by side. Each wait for
//! something to happen is for a condition, bounded by [`lab::PATIENCE`]. Fixed times are only those that are part of what is
//! tested: how long a node is stopped or an interface down, and for how long nothing may be seen of what must not happen.

mod datagrams;
mod delay;
mod lab;
mod node;
mod stream;
mod traffic;
mod wire;

mod capture;
mod carrier;
mod carries;
mod cut;
mod dht;
mod discovery;
mod dns;
mod engine;
mod fair;
mod full_tunnel;
mod gating;
mod hijack;
mod hostile_gateway;
mod interop;
mod lanes;
mod lifecycle;
mod loss;
mod lossy;
mod metrics;
mod moves;
mod mtu;
mod nat;
mod offload;
mod order;
mod path;
mod paths;
mod pinholes;
mod portmap;
mod refusals;
mod rekey;
mod relay;
mod routes;
mod services;
mod shapes;
mod shapes_udp;
mod strangers;
mod stream_carrier;
mod stun;
mod stun_v6;
mod web;
