//! Generated histories: what arrives late, twice or out of order never changes what is believed, and whoever follows
//! the changes knows exactly what the registry knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pool_registry_types::PoolCallbackEvent;
use proptest::prelude::*;

use super::tests::{heartbeat, node_id, pool, register, replica};
use super::*;

const NODES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// The node's truth changes: a pool gets so many replicas of so many slots.
    Change {
        node: usize,
        pool: usize,
        replicas: usize,
        slots: u32,
    },
    /// The node is started anew.
    Restart {
        node: usize,
    },
    /// The node writes a report; it travels.
    Send {
        node: usize,
        kind: Kind,
    },
    /// The `at`-th report on its way arrives; it may arrive again.
    Arrive {
        at: usize,
        again: bool,
    },
    Leave {
        node: usize,
    },
    Pass {
        seconds: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Register,
    Heartbeat,
    Callback { pool: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    let kind = prop_oneof![
        2 => Just(Kind::Register),
        4 => Just(Kind::Heartbeat),
        2 => (0..2usize).prop_map(|pool| Kind::Callback { pool }),
    ];
    prop_oneof![
        4 => (node.clone(), 0..2usize, 0..3usize, 0..3u32)
            .prop_map(|(node, pool, replicas, slots)| Step::Change { node, pool, replicas, slots }),
        1 => node.clone().prop_map(|node| Step::Restart { node }),
        8 => (node.clone(), kind).prop_map(|(node, kind)| Step::Send { node, kind }),
        10 => (any::<usize>(), proptest::bool::weighted(0.2)).prop_map(|(at, again)| Step::Arrive { at, again }),
        1 => node.prop_map(|node| Step::Leave { node }),
        4 => (1..12u64).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

#[derive(Clone)]
enum Report {
    Register(RegisterRequest),
    Heartbeat(NodeId, HeartbeatRequest),
    Callback(PoolCallback),
}

struct Node {
    name: String,
    incarnation: u32,
    sequence: u64,
    pools: Vec<PoolReport>,
}

/// Where a replica is, in words, and how many slots it has.
type Believed = BTreeMap<String, u32>;

struct World {
    registry: Registry,
    now: Moment,
    nodes: Vec<Node>,
    on_the_way: Vec<(usize, u32, u64, Report)>,
    /// What somebody knows who has followed every change.
    followed: Believed,
    online: BTreeSet<String>,
    /// The newest that was believed of each node: its incarnation and sequence, and the incarnations before.
    newest: BTreeMap<String, (u32, u64, BTreeSet<u32>)>,
}

fn place(
    node: &NodeId,
    pool: &pool_registry_types::PoolId,
    replica: &pool_registry_types::ReplicaId,
) -> String {
    format!("{node}/{pool}/{replica}")
}

impl World {
    fn new() -> Self {
        let node = |at: usize| Node {
            name: format!("n{at}"),
            incarnation: 0,
            sequence: 0,
            pools: Vec::new(),
        };
        Self {
            registry: Registry::new(Settings::default()),
            now: Duration::ZERO,
            nodes: (0..NODES).map(node).collect(),
            on_the_way: Vec::new(),
            followed: BTreeMap::new(),
            online: BTreeSet::new(),
            newest: BTreeMap::new(),
        }
    }

    fn send(&mut self, at: usize, kind: Kind) {
        let node = &mut self.nodes[at];
        node.sequence += 1;
        let incarnation = format!("i{}", node.incarnation);
        let pools = node.pools.clone();
        let report = match kind {
            Kind::Register => Report::Register(register(&node.name, &incarnation, node.sequence, pools)),
            Kind::Heartbeat => {
                Report::Heartbeat(node_id(&node.name), heartbeat(&incarnation, node.sequence, pools))
            }
            Kind::Callback { pool } => {
                let Some(pool) = pools.get(pool).cloned() else {
                    return;
                };
                Report::Callback(PoolCallback {
                    node_id: node_id(&node.name),
                    event: PoolCallbackEvent::PoolLost,
                    pool_id: pool.pool_id.clone(),
                    incarnation,
                    sequence: node.sequence,
                    pool,
                })
            }
        };
        self.on_the_way
            .push((at, node.incarnation, node.sequence, report));
    }

    fn arrive(&mut self, at: usize, again: bool) {
        let Some(at) = at.checked_rem(self.on_the_way.len()) else {
            return;
        };
        let (node, incarnation, sequence, report) = if again {
            self.on_the_way[at].clone()
        } else {
            self.on_the_way.swap_remove(at)
        };
        let name = self.nodes[node].name.clone();
        let believed = self.registry.node(&node_id(&name));
        let online = believed.is_some_and(|node| node.state() == NodeState::Online);
        let mut changes = Vec::new();
        let full = !matches!(report, Report::Callback(_));
        let result = match report {
            Report::Register(request) => self.registry.register(self.now, request, &mut changes),
            Report::Heartbeat(node, request) => {
                self.registry.heartbeat(self.now, 0, &node, request, &mut changes)
            }
            Report::Callback(callback) => self.registry.callback(self.now, callback, &mut changes),
        };
        let known = self.newest.get(&name);
        let is_older = known.is_some_and(|(newest, sequence_newest, former)| {
            incarnation == *newest && sequence < *sequence_newest || online && former.contains(&incarnation)
        });
        if is_older && full {
            assert_ne!(
                result,
                Ok(Applied::Taken),
                "{name}: {incarnation}.{sequence} is older than {known:?}"
            );
        }
        if result != Ok(Applied::Taken) {
            assert!(
                changes.is_empty(),
                "{name}: left aside and still told {changes:?}"
            );
        } else if full {
            let (newest, newest_sequence, former) =
                self.newest
                    .entry(name)
                    .or_insert((incarnation, 0, BTreeSet::new()));
            if *newest != incarnation {
                former.insert(*newest);
                former.remove(&incarnation);
            }
            (*newest, *newest_sequence) = (incarnation, sequence);
        }
        self.follow(changes);
    }

    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::ReplicaUp(replica) => {
                    let place = place(&replica.node_id, &replica.pool_id, &replica.report.replica_id);
                    assert!(
                        self.followed
                            .insert(place.clone(), replica.report.slots_total)
                            .is_none(),
                        "{place} came twice"
                    );
                }
                Change::ReplicaChanged(replica) => {
                    let place = place(&replica.node_id, &replica.pool_id, &replica.report.replica_id);
                    let before = self.followed.insert(place.clone(), replica.report.slots_total);
                    assert!(before.is_some(), "{place} changed and was not there");
                }
                Change::ReplicaDown {
                    node_id,
                    pool_id,
                    replica_id,
                } => {
                    let place = place(&node_id, &pool_id, &replica_id);
                    assert!(self.followed.remove(&place).is_some(), "{place} went twice");
                }
                Change::Node { node_id, from, to } => {
                    let node = node_id.to_string();
                    let usable = |state: Option<NodeState>| !matches!(state, None | Some(NodeState::Offline));
                    assert_ne!(from, to);
                    assert_eq!(
                        self.online.contains(&node),
                        usable(from),
                        "{node} did not stand at {from:?}"
                    );
                    if usable(to) {
                        self.online.insert(node)
                    } else {
                        self.online.remove(&node)
                    };
                    if to.is_none() {
                        self.newest.remove(&node_id.to_string());
                    }
                }
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Change {
                node,
                pool: at,
                replicas,
                slots,
            } => {
                let replicas: Vec<_> = (0..replicas)
                    .map(|at| replica(&format!("r{at}"), slots))
                    .collect();
                let pools = &mut self.nodes[node].pools;
                let changed = pool(&format!("p{at}"), &replicas);
                pools.retain(|pool| pool.pool_id != changed.pool_id);
                pools.push(changed);
            }
            Step::Restart { node } => {
                self.nodes[node].incarnation += 1;
                self.nodes[node].sequence = 0;
            }
            Step::Send { node, kind } => self.send(node, kind),
            Step::Arrive { at, again } => self.arrive(at, again),
            Step::Leave { node } => {
                let mut changes = Vec::new();
                self.registry
                    .deregister(&node_id(&self.nodes[node].name), &mut changes);
                self.follow(changes);
            }
            Step::Pass { seconds } => {
                self.now += Duration::from_secs(seconds);
                let mut changes = Vec::new();
                self.registry.tick(self.now, &mut changes);
                self.follow(changes);
            }
        }
    }

    /// Whoever has followed the changes knows what the registry knows.
    fn check(&self) {
        let mut believed = Believed::new();
        for node in self
            .registry
            .nodes()
            .filter(|node| node.state() != NodeState::Offline)
        {
            for pool in node.pools() {
                for replica in &pool.replicas {
                    believed.insert(
                        place(&node.node_id, &pool.pool_id, &replica.replica_id),
                        replica.slots_total,
                    );
                }
            }
        }
        assert_eq!(self.followed, believed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_and_reordered_reports_never_undo_newer_ones(steps in proptest::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            world.check();
        }
        // Whatever was lost on the way, and whichever start was taken for the later one: a while after the last
        // report on the way has arrived, the next registration of each node is the truth.
        world.on_the_way.clear();
        world.take(&Step::Pass { seconds: 16 });
        for node in 0..NODES {
            world.send(node, Kind::Register);
            world.arrive(0, false);
            world.check();
            let known = &world.nodes[node];
            let believed = world.registry.node(&node_id(&known.name)).unwrap();
            assert_eq!(believed.pools().count(), known.pools.len());
        }
    }
}
