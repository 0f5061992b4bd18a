//! Two hundred nodes in one process, each the real one from libp2p's handshakes up to what nodes tell each other of third
//! nodes: who should find each other does, whoever joins, leaves, restarts or is renumbered meanwhile.
//!
//! `RINGLANE_SEED` repeats a run. What it cost is printed; docs/scaling.md has it in a table, and a model of the same
//! exchange for ten thousand nodes.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod model;
mod underlay;
mod world;

use self::world::{End, World};

/// Ten sites with a hub each. Nodes know the others of their site and no other; hubs know each other too. Who starts
/// knows the address of its hub, and a hub that of the first.
const SITES: usize = 10;
const NODES_PER_SITE: usize = 20;

#[test]
fn two_hundred_nodes_find_each_other_while_some_join_leave_restart_and_are_renumbered() {
    let seed = world::seed();
    println!("RINGLANE_SEED={seed}");
    world::run(async move {
        let mut world = World::new(seed, SITES, NODES_PER_SITE);
        let nodes = SITES * NODES_PER_SITE;
        let late: Vec<_> = world.choose(20);

        let others: Vec<_> = (0..nodes).filter(|at| !late.contains(at)).collect();
        world.start(&others);
        world.settle("180 nodes start").await;

        world.start(&late);
        world.settle("20 nodes join").await;

        let restarted = world.choose(20);
        for (position, &at) in restarted.iter().enumerate() {
            world.stop(at, if position % 2 == 0 { End::Orderly } else { End::Killed }).await;
        }
        world.start(&restarted);
        world.settle("20 nodes restart, half of them killed").await;

        let renumbered = world.choose(20);
        for &at in &renumbered {
            world.stop(at, End::Orderly).await;
            world.renumber(at);
        }
        world.start(&renumbered);
        world.settle("20 nodes return with other addresses").await;

        let left = world.choose(20);
        for &at in &left {
            world.stop(at, End::Killed).await;
        }
        world.stop(World::FIRST_HUB, End::Orderly).await;
        world.settle("20 nodes and the hub that everybody began with leave").await;

        // Nobody whom its configuration names is there: those that were its neighbours come back to it.
        let orphan = World::FIRST_HUB + 1;
        world.start_if_down(orphan);
        world.settle("a node without its hub starts").await;
        world.stop(orphan, End::Killed).await;
        world.start(&[orphan]);
        world.settle("and restarts").await;

        world.check_that_nobody_else_met();
        world.report();
    });
}
