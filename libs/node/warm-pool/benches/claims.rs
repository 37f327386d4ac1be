//! How long a claim takes behind one lock: a hundred claimers, a thousand warm sandboxes, a hundred thousand claims.
//!
//! `cargo bench -p warm-pool` prints the distribution of single claims (with the wait for the lock in it) and checks
//! that none was met twice; then criterion's figures for a claim with its release and for a tick, which holds the same
//! lock. The budget is a 99th percentile of 1 ms.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use warm_pool::{Effect, Event, Level, Owner, PoolKey, PoolSpec, ProfileHash, SandboxId, Settings, WarmPool};

const CLAIMERS: usize = 100;
const SANDBOXES: usize = 1000;
const CLAIMS: usize = 100_000;
const POOL: PoolKey = PoolKey(0);

/// A pool with a thousand warm sandboxes.
fn full_pool() -> WarmPool {
    let settings = Settings {
        sandboxes_max: 4 * SANDBOXES,
        memory_bytes_max: u64::MAX >> 1,
        starts_max: SANDBOXES,
        start_spacing: Duration::ZERO,
        ends_max: usize::MAX,
        ..Settings::default()
    };
    let mut pool = WarmPool::new(settings, SandboxId(0), Duration::ZERO);
    pool.add_pool(PoolSpec {
        name: "bench".into(),
        profile: ProfileHash([0; 32]),
        target: SANDBOXES,
        warm_bytes: 3 << 20,
        owned_bytes: 200 << 20,
    });
    let effects = pool.step(Duration::ZERO, Event::AdoptionDone);
    obey(&mut pool, Duration::ZERO, effects);
    assert_eq!(pool.counts(POOL).warm, SANDBOXES);
    pool
}

/// Does at once what a node does in milliseconds.
fn obey(pool: &mut WarmPool, now: Duration, mut effects: Vec<Effect>) {
    while let Some(effect) = effects.pop() {
        let event = match effect {
            Effect::Start { sandbox, .. } => Event::Started { sandbox },
            Effect::Retire { sandbox, .. } | Effect::End { sandbox } => Event::Ended { sandbox },
            Effect::CheckHealth { sandbox, check } => Event::Healthy {
                sandbox,
                check,
                memory_bytes: 3 << 20,
            },
            Effect::Ready { .. } | Effect::RunsLost { .. } | Effect::OwnerFree { .. } | Effect::Room => {
                continue;
            }
        };
        effects.extend(pool.step(now, event));
    }
}

/// All claimers at once. Each claim is another owner's; what is claimed ends after it, and the pool is filled again.
fn race() -> (Vec<Duration>, usize) {
    let pool = Mutex::new(full_pool());
    // Every sandbox of the whole race: each claim starts one in the place of what it takes.
    let held: Vec<AtomicBool> = (0..SANDBOXES + CLAIMS + 1)
        .map(|_| AtomicBool::new(false))
        .collect();
    let doubles = AtomicUsize::new(0);
    let barrier = Barrier::new(CLAIMERS);
    let begun = Instant::now();
    let claimer = |number: usize| {
        let mut times = Vec::with_capacity(CLAIMS / CLAIMERS);
        barrier.wait();
        for turn in 0..CLAIMS / CLAIMERS {
            let owner = Owner::new(format!("owner-{number}-{turn}"));
            let mut effects = Vec::new();
            let asked = Instant::now();
            let claimed = {
                let mut pool = pool.lock().expect("nobody panics with it");
                pool.claim(begun.elapsed(), POOL, &owner, &mut effects)
            };
            times.push(asked.elapsed());
            let claimed = claimed.expect("a thousand are warm for a hundred claimers");
            assert_eq!(claimed.level, Level::Warm);
            let at = usize::try_from(claimed.sandbox.0).expect("they count from 0");
            if held[at].swap(true, Ordering::Relaxed) {
                doubles.fetch_add(1, Ordering::Relaxed);
            }
            let mut pool = pool.lock().expect("nobody panics with it");
            let now = begun.elapsed();
            obey(&mut pool, now, effects);
            let effects = pool.step(
                now,
                Event::RunEnded {
                    sandbox: claimed.sandbox,
                    keep: false,
                },
            );
            obey(&mut pool, now, effects);
        }
        times
    };
    let mut times: Vec<Duration> = thread::scope(|scope| {
        let claimers: Vec<_> = (0..CLAIMERS)
            .map(|number| scope.spawn(move || claimer(number)))
            .collect();
        claimers
            .into_iter()
            .flat_map(|one| one.join().expect("no claimer panics"))
            .collect()
    });
    times.sort_unstable();
    (times, doubles.into_inner())
}

fn claims(criterion: &mut Criterion) {
    let (times, doubles) = race();
    let at = |share: f64| {
        // Small enough to be exact.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below the length"
        )]
        let index = (times.len() as f64 * share) as usize;
        times[index.min(times.len() - 1)]
    };
    println!(
        "{CLAIMERS} claimers, {SANDBOXES} sandboxes, {CLAIMS} claims: p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}, {doubles} double",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    assert_eq!(doubles, 0, "a sandbox was handed out twice");
    let mut pool = full_pool();
    criterion.bench_function("a tick over a thousand sandboxes", |bencher| {
        // Before anything is due: that is what almost every tick is.
        bencher.iter(|| black_box(pool.step(Duration::from_millis(1), Event::Tick)));
    });
    let mut now = Duration::ZERO;
    let owner = Owner::new("ann");
    criterion.bench_function("claim and release of a warm sandbox", |bencher| {
        bencher.iter(|| {
            now += Duration::from_micros(1);
            let mut effects = Vec::new();
            let claimed = black_box(pool.claim(now, POOL, &owner, &mut effects)).expect("one is warm");
            obey(&mut pool, now, effects);
            let effects = pool.step(
                now,
                Event::RunEnded {
                    sandbox: claimed.sandbox,
                    keep: false,
                },
            );
            obey(&mut pool, now, effects);
        });
    });
}

criterion_group!(benches, claims);
criterion_main!(benches);
