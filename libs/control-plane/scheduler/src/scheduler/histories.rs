//! Generated histories: two control planes, nodes that have the last word, and everything that may go wrong in any
//! order. After every step both control planes' invariants are looked at from inside, and the ledger from outside:
//! no task lost or ended twice, no slot leaked or booked twice, nobody overtaken, every eviction told.

use std::collections::BTreeMap;

use pool_registry_types::{ModelInfo, ReplicaState};
use proptest::prelude::*;
use task_api::{PlacementMode, PlacementRequest, Priority};

use crate::testing::{model, ms, pool, replica};
use crate::{
    Admission, AdmissionPolicy, Effect, Effects, Lease, Moment, Outcome, Placement, Refusal, ReplicaKey,
    ReplicaUpdate, Scheduler, Settings, Target, TaskKey, TaskSpec,
};

const CONTROL_PLANES: usize = 2;
const NODES: usize = 4;
const QUEUE_CAPACITY: usize = 3;

/// One step. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        plane: usize,
        kind: usize,
        batch: bool,
        deadline_ms: Option<u64>,
        may_wait: bool,
    },
    /// The task's request reaches its node, which grants or refuses the slot.
    Dispatch {
        plane: usize,
        task: usize,
    },
    Started {
        plane: usize,
        task: usize,
    },
    Release {
        plane: usize,
        task: usize,
        failed: bool,
    },
    Cancel {
        plane: usize,
        task: usize,
    },
    /// The holder of a lease meets a dead connection.
    Fail {
        plane: usize,
        task: usize,
        take_out: bool,
    },
    Probe {
        plane: usize,
        node: usize,
    },
    /// The node dies; the control planes learn it later, or never before it is back.
    Crash {
        node: usize,
    },
    Revive {
        node: usize,
    },
    /// A control plane takes the node's report: the present one, or an old one that was held up.
    Report {
        plane: usize,
        node: usize,
        old: bool,
    },
    /// A control plane takes the node for offline, rightly or not.
    Offline {
        plane: usize,
        node: usize,
    },
    Resize {
        node: usize,
        slots: u32,
    },
    Drain {
        plane: usize,
        draining: bool,
    },
    Pass {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let plane = 0..CONTROL_PLANES;
    let node = 0..NODES;
    let task = 0..64usize;
    prop_oneof![
        12 => (plane.clone(), 0..6usize, any::<bool>(), proptest::option::weighted(0.2, 1..5_000u64), proptest::bool::weighted(0.9))
            .prop_map(|(plane, kind, batch, deadline_ms, may_wait)| Step::Submit { plane, kind, batch, deadline_ms, may_wait }),
        12 => (plane.clone(), task.clone()).prop_map(|(plane, task)| Step::Dispatch { plane, task }),
        5 => (plane.clone(), task.clone()).prop_map(|(plane, task)| Step::Started { plane, task }),
        10 => (plane.clone(), task.clone(), any::<bool>()).prop_map(|(plane, task, failed)| Step::Release { plane, task, failed }),
        3 => (plane.clone(), task.clone()).prop_map(|(plane, task)| Step::Cancel { plane, task }),
        4 => (plane.clone(), task, any::<bool>()).prop_map(|(plane, task, take_out)| Step::Fail { plane, task, take_out }),
        3 => (plane.clone(), node.clone()).prop_map(|(plane, node)| Step::Probe { plane, node }),
        2 => node.clone().prop_map(|node| Step::Crash { node }),
        2 => node.clone().prop_map(|node| Step::Revive { node }),
        6 => (plane.clone(), node.clone(), proptest::bool::weighted(0.3)).prop_map(|(plane, node, old)| Step::Report { plane, node, old }),
        2 => (plane.clone(), node.clone()).prop_map(|(plane, node)| Step::Offline { plane, node }),
        1 => (node, 0..4u32).prop_map(|(node, slots)| Step::Resize { node, slots }),
        1 => (plane, any::<bool>()).prop_map(|(plane, draining)| Step::Drain { plane, draining }),
        5 => (1..20_000u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// A node: one replica, and the truth about its slots.
struct Node {
    alive: bool,
    slots: u32,
    /// Who holds them: control plane and lease.
    granted: Vec<(usize, Lease)>,
    /// A report that is on its way for long.
    held_up: Option<ReplicaUpdate>,
}

/// What the outside knows of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Waiting,
    /// Has a slot as far as its control plane believes; `granted` once the node agreed.
    Held {
        lease: Lease,
        node: usize,
        replica: ReplicaKey,
        granted: bool,
        started: bool,
    },
    Ended,
}

struct Entry {
    key: TaskKey,
    kind: usize,
    batch: bool,
    arrival: u64,
    /// It came back once: it may have excluded replicas, so others may rightly go before it.
    came_back: bool,
    known: Known,
}

struct Plane {
    scheduler: Scheduler,
    effects: Effects,
    tasks: Vec<Entry>,
    keys: BTreeMap<usize, ReplicaKey>,
}

struct World {
    now: Moment,
    arrivals: u64,
    nodes: Vec<Node>,
    planes: Vec<Plane>,
}

impl World {
    fn new(policy: AdmissionPolicy) -> Self {
        let settings = Settings {
            queue_capacity: QUEUE_CAPACITY,
            policy,
            attempts_max: 3,
            ..Settings::default()
        };
        let plane = |_| Plane {
            scheduler: Scheduler::new(settings.clone()),
            effects: Effects::new(),
            tasks: Vec::new(),
            keys: BTreeMap::new(),
        };
        let node = |_| Node {
            alive: true,
            slots: 2,
            granted: Vec::new(),
            held_up: None,
        };
        let mut world = Self {
            now: ms(0),
            arrivals: 0,
            nodes: (0..NODES).map(node).collect(),
            planes: (0..CONTROL_PLANES).map(plane).collect(),
        };
        for plane in 0..CONTROL_PLANES {
            for node in 0..NODES {
                world.report(plane, node, false);
            }
        }
        world
    }

    /// Nodes 0 and 1 are of pool `a`, 2 and 3 of pool `b`; all serve `both`, and each pool has a model of its own.
    fn update(&self, plane: usize, node: usize) -> ReplicaUpdate {
        let pool = if node < 2 { "a" } else { "b" };
        let mut update = replica(&format!("n{node}"), pool, "r0", "both");
        update.info.models.push(ModelInfo {
            id: format!("only-{pool}"),
            aliases: vec![],
            context_length: None,
            media: false,
        });
        let node = &self.nodes[node];
        update.status.state = if node.alive {
            ReplicaState::Ready
        } else {
            ReplicaState::Failed
        };
        update.status.slots_total = node.slots;
        let others = node.granted.iter().filter(|(holder, _)| *holder != plane).count();
        update.status.others_busy = u32::try_from(others).unwrap();
        update
    }

    fn report(&mut self, plane: usize, node: usize, old: bool) {
        let fresh = self.update(plane, node);
        let held_up = self.nodes[node].held_up.replace(fresh.clone());
        let update = if old { held_up.unwrap_or(fresh) } else { fresh };
        let plane = &mut self.planes[plane];
        let key = plane
            .scheduler
            .upsert_replica(self.now, update, &mut plane.effects);
        plane.keys.insert(node, key);
    }

    fn submit(&mut self, plane: usize, kind: usize, batch: bool, deadline_ms: Option<u64>, may_wait: bool) {
        let (a, b) = (pool("a"), pool("b"));
        let pin = PlacementRequest {
            mode: PlacementMode::Pin,
            pools: vec![b.clone()],
            avoid: vec![],
            nodes: vec![],
        };
        let avoid = PlacementRequest {
            mode: PlacementMode::Auto,
            pools: vec![],
            avoid: vec![b.clone()],
            nodes: vec![],
        };
        let base = match kind {
            0 => model("both"),
            1 => model("only-a"),
            2 => TaskSpec::new(Target::Pool(&b)),
            3 => TaskSpec {
                placement: Some(&pin),
                ..model("both")
            },
            4 => TaskSpec {
                placement: Some(&avoid),
                session: Some(1),
                ..model("both")
            },
            _ => TaskSpec {
                prefixes: &[1, 2],
                ..TaskSpec::new(Target::ModelInPool {
                    model: "both",
                    pool: &a,
                })
            },
        };
        let priority = if batch {
            Priority::Batch
        } else {
            Priority::Interactive
        };
        let deadline = deadline_ms.map(|deadline_ms| self.now + ms(deadline_ms));
        let spec = TaskSpec {
            priority,
            deadline,
            may_wait,
            ..base
        };
        let plane = &mut self.planes[plane];
        let answer = plane.scheduler.submit(self.now, &spec, &mut plane.effects);
        let (key, known) = match answer {
            Ok(Admission::Placed(placement)) => (placement.lease.task(), held(&placement)),
            Ok(Admission::Queued(key, _)) => (key, Known::Waiting),
            Err(refusal) => {
                assert!(!may_wait || !matches!(refusal, Refusal::ReplicaExhausted | Refusal::PoolUnready));
                assert!(!matches!(
                    refusal,
                    Refusal::StaleLease | Refusal::AnswerBegun | Refusal::Evicted { .. }
                ));
                return;
            }
        };
        self.arrivals += 1;
        let entry = Entry {
            key,
            kind,
            batch,
            arrival: self.arrivals,
            came_back: false,
            known,
        };
        // Whoever was evicted to make room for this one is told before.
        plane.settle();
        plane.tasks.push(entry);
        if known != Known::Waiting {
            plane.check_not_overtaking(plane.tasks.len() - 1);
        }
    }

    /// The `at`-th task of those that hold a slot.
    fn holding(&self, plane: usize, at: usize) -> Option<usize> {
        let holds = |entry: &&Entry| matches!(entry.known, Known::Held { .. });
        let tasks = &self.planes[plane].tasks;
        let count = tasks.iter().filter(holds).count();
        let nth = tasks.iter().filter(holds).nth(at.checked_rem(count)?)?;
        tasks.iter().position(|entry| entry.key == nth.key)
    }

    fn dispatch(&mut self, plane: usize, at: usize) {
        let Some(index) = self.holding(plane, at) else {
            return;
        };
        let Known::Held {
            lease,
            node,
            replica,
            granted: false,
            ..
        } = self.planes[plane].tasks[index].known
        else {
            return;
        };
        if !self.nodes[node].alive {
            self.fail(plane, index, replica, true);
            return;
        }
        let has_room = self.nodes[node].granted.len() < self.nodes[node].slots as usize;
        if has_room {
            self.nodes[node].granted.push((plane, lease));
            if let Known::Held { granted, .. } = &mut self.planes[plane].tasks[index].known {
                *granted = true;
            }
            return;
        }
        let plane = &mut self.planes[plane];
        let answer = plane.scheduler.refused(self.now, lease, &mut plane.effects);
        plane.settle();
        plane.came_back(index, answer);
        plane.check_stale(self.now, lease);
    }

    fn fail(&mut self, plane: usize, index: usize, replica: ReplicaKey, take_out: bool) {
        let Known::Held { lease, started, .. } = self.planes[plane].tasks[index].known else {
            return;
        };
        self.free(plane, lease);
        let plane = &mut self.planes[plane];
        if take_out {
            plane.scheduler.take_out(self.now, replica, &mut plane.effects);
            plane.settle();
        }
        let answer = plane.scheduler.requeue(self.now, lease, &mut plane.effects);
        assert!(
            !started || matches!(answer, Err(Refusal::AnswerBegun)),
            "two answers would be glued: {answer:?}"
        );
        plane.settle();
        plane.came_back(index, answer);
        plane.check_stale(self.now, lease);
    }

    /// The node sees the connection end.
    fn free(&mut self, plane: usize, lease: Lease) {
        for node in &mut self.nodes {
            node.granted.retain(|holder| *holder != (plane, lease));
        }
    }

    fn release(&mut self, plane: usize, index: usize, outcome: Outcome) {
        let Known::Held { lease, .. } = self.planes[plane].tasks[index].known else {
            return;
        };
        self.free(plane, lease);
        let plane = &mut self.planes[plane];
        plane.tasks[index].known = Known::Ended;
        plane
            .scheduler
            .release(self.now, lease, outcome, &mut plane.effects)
            .unwrap();
        assert!(
            plane
                .scheduler
                .release(self.now, lease, outcome, &mut plane.effects)
                .is_err(),
            "released twice"
        );
    }

    fn cancel(&mut self, plane: usize, at: usize) {
        let open = |entry: &Entry| entry.known != Known::Ended;
        let count = self.planes[plane]
            .tasks
            .iter()
            .filter(|entry| open(entry))
            .count();
        let Some(nth) = at.checked_rem(count) else { return };
        let index = (0..)
            .filter(|index| open(&self.planes[plane].tasks[*index]))
            .nth(nth)
            .unwrap();
        if let Known::Held { lease, .. } = self.planes[plane].tasks[index].known {
            self.free(plane, lease);
        }
        let plane = &mut self.planes[plane];
        let key = plane.tasks[index].key;
        plane.tasks[index].known = Known::Ended;
        assert!(plane.scheduler.cancel(self.now, key, &mut plane.effects));
        assert!(
            !plane.scheduler.cancel(self.now, key, &mut plane.effects),
            "cancelled twice"
        );
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Submit {
                plane,
                kind,
                batch,
                deadline_ms,
                may_wait,
            } => {
                self.submit(plane, kind, batch, deadline_ms, may_wait);
            }
            Step::Dispatch { plane, task } => self.dispatch(plane, task),
            Step::Started { plane, task } => {
                let Some(index) = self.holding(plane, task) else {
                    return;
                };
                let plane = &mut self.planes[plane];
                if let Known::Held {
                    lease,
                    granted: true,
                    started,
                    ..
                } = &mut plane.tasks[index].known
                {
                    *started = true;
                    plane.scheduler.started(self.now, *lease).unwrap();
                }
            }
            Step::Release { plane, task, failed } => {
                let Some(index) = self.holding(plane, task) else {
                    return;
                };
                self.release(
                    plane,
                    index,
                    if failed {
                        Outcome::Failed
                    } else {
                        Outcome::Completed
                    },
                );
            }
            Step::Cancel { plane, task } => self.cancel(plane, task),
            Step::Fail {
                plane,
                task,
                take_out,
            } => {
                let Some(index) = self.holding(plane, task) else {
                    return;
                };
                if let Known::Held { replica, .. } = self.planes[plane].tasks[index].known {
                    self.fail(plane, index, replica, take_out);
                }
            }
            Step::Probe { plane, node } => {
                if self.nodes[node].alive {
                    let plane = &mut self.planes[plane];
                    plane
                        .scheduler
                        .bring_back(self.now, plane.keys[&node], &mut plane.effects);
                }
            }
            Step::Crash { node } => {
                self.nodes[node].alive = false;
                self.nodes[node].granted.clear();
            }
            Step::Revive { node } => self.nodes[node].alive = true,
            Step::Report { plane, node, old } => self.report(plane, node, old),
            Step::Offline { plane, node } => self.offline(plane, node),
            Step::Resize { node, slots } => self.nodes[node].slots = slots,
            Step::Drain { plane, draining } => {
                let plane = &mut self.planes[plane];
                plane
                    .scheduler
                    .drain_pool(self.now, &pool("a"), draining, &mut plane.effects);
            }
            Step::Pass { ms: passed } => {
                self.now += ms(passed);
                for plane in &mut self.planes {
                    plane.scheduler.tick(self.now, &mut plane.effects);
                    assert!(
                        plane.scheduler.next_due().is_none_or(|due| due > self.now),
                        "tick left something due"
                    );
                }
            }
        }
    }

    fn offline(&mut self, plane: usize, node: usize) {
        let info = self.update(plane, node).info;
        let plane = &mut self.planes[plane];
        let (node_id, pool_id, replica_id) = (&info.node_id, &info.pool_id, &info.replica_id);
        plane
            .scheduler
            .remove_replica(self.now, node_id, pool_id, replica_id, &mut plane.effects);
    }

    fn check(&mut self) {
        for node in &self.nodes {
            let leases: std::collections::HashSet<_> = node.granted.iter().collect();
            assert_eq!(leases.len(), node.granted.len(), "a slot is booked twice");
        }
        for plane in &mut self.planes {
            plane.settle();
            plane.scheduler.check();
            let open = plane
                .tasks
                .iter()
                .filter(|entry| entry.known != Known::Ended)
                .count();
            let waiting = plane
                .tasks
                .iter()
                .filter(|entry| entry.known == Known::Waiting)
                .count();
            assert_eq!(
                plane.scheduler.task_counts(),
                (open, waiting),
                "a task is lost, or ended without a word"
            );
            for entry in plane.scheduler.pools() {
                let came_back = plane.tasks.iter().filter(|entry| entry.came_back).count();
                let queued = (entry.waiting_interactive + entry.waiting_batch) as usize;
                assert!(
                    queued <= QUEUE_CAPACITY + came_back,
                    "{queued} wait for {}",
                    entry.pool_id
                );
            }
        }
    }

    /// Everything comes back and every holder ends: then nobody waits and every slot is free.
    fn wind_down(&mut self) {
        for node in 0..NODES {
            self.nodes[node].alive = true;
            self.nodes[node].slots = 2;
        }
        for _ in 0..200 {
            self.now += ms(1_001);
            for plane in 0..CONTROL_PLANES {
                let known = &mut self.planes[plane];
                known
                    .scheduler
                    .drain_pool(self.now, &pool("a"), false, &mut known.effects);
                for node in 0..NODES {
                    self.report(plane, node, false);
                    let known = &mut self.planes[plane];
                    known
                        .scheduler
                        .bring_back(self.now, known.keys[&node], &mut known.effects);
                }
                let known = &mut self.planes[plane];
                known.scheduler.tick(self.now, &mut known.effects);
                known.settle();
                for index in 0..self.planes[plane].tasks.len() {
                    self.release(plane, index, Outcome::Completed);
                    self.planes[plane].settle();
                }
            }
            self.check();
            if self
                .planes
                .iter()
                .all(|plane| plane.scheduler.task_counts() == (0, 0))
            {
                break;
            }
        }
        for plane in &self.planes {
            assert_eq!(plane.scheduler.task_counts(), (0, 0), "somebody starves");
            let leased: u32 = plane
                .scheduler
                .pools()
                .iter()
                .map(|entry| entry.slots_leased)
                .sum();
            assert_eq!(leased, 0, "a slot has leaked");
        }
        assert!(self.nodes.iter().all(|node| node.granted.is_empty()));
    }
}

fn held(placement: &Placement) -> Known {
    let node = placement
        .info
        .node_id
        .as_str()
        .trim_start_matches('n')
        .parse()
        .unwrap();
    Known::Held {
        lease: placement.lease,
        node,
        replica: placement.replica,
        granted: false,
        started: false,
    }
}

impl Plane {
    fn position(&self, key: TaskKey) -> usize {
        self.tasks
            .iter()
            .rposition(|entry| entry.key == key)
            .expect("effects speak of tasks that were accepted")
    }

    /// Takes the effects into the ledger: each must fit what was known.
    fn settle(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Placed(placement) => {
                    let index = self.position(placement.lease.task());
                    assert_eq!(
                        self.tasks[index].known,
                        Known::Waiting,
                        "placed twice, or after its end"
                    );
                    self.tasks[index].known = held(&placement);
                    self.check_not_overtaking(index);
                }
                Effect::Ended(key, refusal) => {
                    let index = self.position(key);
                    assert_eq!(
                        self.tasks[index].known,
                        Known::Waiting,
                        "ended twice, or while it held a slot"
                    );
                    self.tasks[index].known = Known::Ended;
                    match refusal {
                        Refusal::Evicted { .. } => assert!(self.tasks[index].batch),
                        Refusal::Expired | Refusal::PoolUnavailable => {}
                        other => panic!("a waiting task does not end with {other:?}"),
                    }
                }
                Effect::Probe(..) => {}
            }
        }
    }

    fn came_back(&mut self, index: usize, answer: Result<Admission, Refusal>) {
        self.tasks[index].came_back = true;
        self.tasks[index].known = match answer {
            Ok(Admission::Placed(placement)) => held(&placement),
            Ok(Admission::Queued(key, _)) => {
                assert_eq!(key, self.tasks[index].key);
                Known::Waiting
            }
            Err(refusal) => {
                assert_ne!(refusal, Refusal::StaleLease);
                Known::Ended
            }
        };
    }

    /// A lease that was given back says nothing any more, even when its task has another one.
    fn check_stale(&mut self, now: Moment, lease: Lease) {
        assert!(self.scheduler.started(now, lease).is_err());
        assert!(
            self.scheduler
                .release(now, lease, Outcome::Failed, &mut self.effects)
                .is_err()
        );
        assert!(matches!(
            self.scheduler.requeue(now, lease, &mut self.effects),
            Err(Refusal::StaleLease)
        ));
    }

    /// No task of the same kind and class that came earlier still waits, nor an interactive one behind a batch one.
    fn check_not_overtaking(&self, index: usize) {
        let placed = &self.tasks[index];
        for other in &self.tasks {
            let same = other.known == Known::Waiting && other.kind == placed.kind && !other.came_back;
            let goes_before = (other.batch, other.arrival) < (placed.batch, placed.arrival);
            assert!(
                !(same && goes_before && !placed.came_back),
                "{:?} overtook {:?}",
                placed.key,
                other.key
            );
        }
    }
}

fn run(policy: AdmissionPolicy, steps: &[Step]) {
    let mut world = World::new(policy);
    for step in steps {
        world.take(step);
        world.check();
    }
    world.wind_down();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_leaked_or_booked_twice(drop in any::<bool>(), steps in proptest::collection::vec(step(), 1..120)) {
        run(if drop { AdmissionPolicy::DropLru } else { AdmissionPolicy::Reject }, &steps);
    }
}
