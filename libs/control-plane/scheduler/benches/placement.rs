//! How long placement takes: over fleets of four and of ten thousand replicas.
//!
//! `cargo bench -p scheduler` prints criterion's figures, and before them the distribution of single calls, because the
//! budget is a 99th percentile (50 µs over 10,000 replicas) and criterion tells means.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pool_registry_types::{Dialect, ModelInfo, NodeId, PoolId, ReplicaId, ReplicaState};
use scheduler::{
    Admission, DialectSet, Effects, Lease, Outcome, ReplicaInfo, ReplicaStatus, ReplicaUpdate, Scheduler,
    Settings, Target, TaskSpec,
};

const SLOTS: u32 = 4;
/// Calls that are measured one by one.
const CALLS: usize = 200_000;

fn id<T>(make: impl Fn(String) -> Result<T, pool_registry_types::IdError>, text: String) -> T {
    make(text).expect("letters, digits and dashes")
}

fn update(pool: usize, replica: usize) -> ReplicaUpdate {
    ReplicaUpdate {
        info: ReplicaInfo {
            node_id: id(NodeId::new, format!("node-{}", replica % 1000)),
            address: format!("https://node-{}:9200", replica % 1000),
            pool_id: id(PoolId::new, format!("pool-{pool:05}")),
            replica_id: id(ReplicaId::new, format!("r{replica:05}")),
            kind: pool_registry_types::PoolKind::Engine,
            engine: "llamacpp".to_owned(),
            engine_version: "b1".to_owned(),
            models: vec![ModelInfo {
                id: "model".to_owned(),
                aliases: vec![],
                context_length: Some(4096),
                media: false,
            }],
            dialects: DialectSet::from(Dialect::ChatCompletions),
            cancel_on_stream_only: true,
        },
        status: ReplicaStatus {
            state: ReplicaState::Ready,
            slots_total: SLOTS,
            others_busy: 0,
            vram_free_bytes: (replica as u64 % 7) << 30,
        },
    }
}

/// A fleet with half of its slots taken, and the leases in the order in which they were given.
struct Fleet {
    scheduler: Scheduler,
    held: VecDeque<Lease>,
    effects: Effects,
    now: Duration,
    random: u64,
}

impl Fleet {
    fn new(pools: usize, replicas_per_pool: usize) -> Self {
        let mut scheduler = Scheduler::new(Settings::default());
        let mut effects = Effects::new();
        for pool in 0..pools {
            for replica in 0..replicas_per_pool {
                scheduler.upsert_replica(Duration::ZERO, update(pool, replica), &mut effects);
            }
        }
        let mut fleet = Self {
            scheduler,
            held: VecDeque::new(),
            effects,
            now: Duration::ZERO,
            random: 1,
        };
        for _ in 0..pools * replicas_per_pool * SLOTS as usize / 2 {
            fleet.submit();
        }
        fleet
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A task with a session of ten thousand and a prompt whose beginning one in ten others shares.
    fn submit(&mut self) {
        self.now += Duration::from_micros(10);
        let random = self.next_random();
        let prefixes = [random % 100_000, 1_000_000 + random % 10];
        let spec = TaskSpec {
            dialects: DialectSet::from(Dialect::ChatCompletions),
            session: Some(2_000_000 + random % 10_000),
            prefixes: &prefixes,
            ..TaskSpec::new(Target::Model("model"))
        };
        match black_box(self.scheduler.submit(self.now, &spec, &mut self.effects)) {
            Ok(Admission::Placed(placement)) => self.held.push_back(placement.lease),
            other => panic!("half of the slots are free: {other:?}"),
        }
    }

    fn release(&mut self) {
        let lease = self.held.pop_front().expect("as many are held as were submitted");
        self.scheduler
            .release(self.now, lease, Outcome::Completed, &mut self.effects)
            .expect("it is held");
    }
}

fn print_distribution(name: &str, fleet: &mut Fleet) {
    let mut submits = Vec::with_capacity(CALLS);
    let mut releases = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        fleet.submit();
        let placed = Instant::now();
        fleet.release();
        submits.push(placed - start);
        releases.push(placed.elapsed());
    }
    for (what, mut times) in [("submit", submits), ("release", releases)] {
        times.sort_unstable();
        let at = |permille: usize| times[(times.len() - 1) * permille / 1000];
        println!(
            "{name}: {what} p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
            at(500),
            at(990),
            at(999),
            at(1000)
        );
    }
}

fn placement(criterion: &mut Criterion) {
    for (name, pools, replicas) in [
        ("1 pool of 4", 1, 4),
        ("1 pool of 10,000", 1, 10_000),
        ("100 pools of 100", 100, 100),
    ] {
        let mut fleet = Fleet::new(pools, replicas);
        print_distribution(name, &mut fleet);
        criterion.bench_function(&format!("submit and release, {name}"), |bencher| {
            bencher.iter(|| {
                fleet.submit();
                fleet.release();
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(2));
    targets = placement
}
criterion_main!(benches);
