//! The door, with fake engines on loopback: fakes, because real engines do not fail at the moment a test wants it.

use std::time::{Duration, Instant};

use crate::bench::{Bench, behaviour, call, fake, fake_on, free_port, next, until};
use http_body_util::BodyExt;
use pool_managerd::DoorError;
use pool_registry_types::ReplicaState;
use task_api::ErrorCode;

#[tokio::test]
async fn the_walk_throughs_handoff_makes_a_pool_ready_with_four_slots() {
    let bench = Bench::new(Vec::new());
    let engine = fake(4);
    bench.announce(
        "pool-0",
        "r0",
        &engine.url().replace("127.0.0.1", "localhost"),
        Some(4),
    );
    let pool = bench.ready("pool-0").await;
    assert_eq!((pool.slots_total, pool.slots_free, pool.last_error), (4, 4, None));
    let replica = &pool.replicas[0];
    assert_eq!(
        (replica.engine.as_str(), replica.engine_version.as_str()),
        ("llamacpp", "v1")
    );
    assert_eq!(replica.models[0].id, "fake");
    handoff_watcher::remove(
        &bench.directory,
        &"pool-0".parse().unwrap(),
        &"r0".parse().unwrap(),
    )
    .unwrap();
    until("the pool is gone", || bench.door().snapshot().is_empty()).await;
}

#[tokio::test]
async fn a_handoff_with_nothing_behind_it_says_so_and_comes_in_later() {
    let bench = Bench::new(Vec::new());
    let port = free_port();
    bench.announce("p", "r0", &format!("http://localhost:{port}"), Some(4));
    let pool = bench
        .until("p", "a reason", |pool| pool.last_error.is_some())
        .await;
    let reason = pool.last_error.unwrap();
    assert!(
        reason.contains(&format!("nothing answers at localhost:{port}")),
        "{reason}"
    );
    assert!(!pool.ready && pool.slots_total == 0 && pool.replicas[0].state == ReplicaState::Failed);
    assert!(matches!(bench.call("r0", "x").await, Err(DoorError::NotReady)));
    let _engine = fake_on(port, 4);
    let pool = bench.ready("p").await;
    assert_eq!((pool.slots_free, pool.last_error), (4, None));
}

#[tokio::test]
async fn slots_are_granted_once_and_given_back() {
    let bench = Bench::new(Vec::new());
    let engine = fake(2);
    bench.announce("p", "r0", &engine.url(), None);
    bench.ready("p").await;
    let slow = "chunks=1000000 interval_ms=5";
    let mut one = bench.call("r0", slow).await.unwrap().into_body();
    let two = bench.call("r0", slow).await.unwrap().into_body();
    assert!(next(&mut one).await.is_some());
    let refused = bench.call("r0", slow).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.as_error_code(), ErrorCode::ReplicaExhausted);
    let pool = bench.free("p", 0).await;
    assert_eq!(pool.replicas[0].leases[&crate::bench::holder()], 2);
    drop(one);
    bench.free("p", 1).await;
    drop(two);
    bench.free("p", 2).await;
    until("the engine noticed", || engine.stats().cancelled == 2).await;

    let whole = bench.call("r0", "chunks=3").await.unwrap();
    assert_eq!(whole.status(), 200);
    let text = whole.into_body().collect().await.unwrap().to_bytes();
    assert!(text.ends_with(b"data: [DONE]\n\n"), "{text:?}");
    assert_eq!(
        bench.door().pool(&"p".parse().unwrap()).unwrap().slots_free,
        2,
        "free without delay"
    );
}

#[tokio::test]
async fn a_slot_whose_task_the_engine_still_works_on_is_not_free() {
    let bench = Bench::new(Vec::new());
    let engine = fake(1);
    engine.set_behaviour(behaviour("deaf=1"));
    bench.announce("p", "r0", &engine.url(), None);
    bench.ready("p").await;
    let (pool, replica) = ("p".parse().unwrap(), "r0".parse().unwrap());
    let request = crate::bench::chat("chunks=100 interval_ms=20", false);
    let holder = crate::bench::holder();
    let asked = bench.door().call(&pool, &replica, &holder, request);
    let left = tokio::time::timeout(Duration::from_millis(150), asked).await;
    assert!(left.is_err(), "the caller leaves before the answer");
    let since = Instant::now();
    assert!(matches!(bench.call("r0", "x").await, Err(DoorError::SlotsTaken)));
    bench.free("p", 1).await;
    assert!(
        since.elapsed() >= Duration::from_millis(300),
        "free only once the engine was done"
    );
    assert_eq!(engine.stats().active, 0);
}

#[tokio::test]
async fn tasks_from_before_the_node_keep_their_slots_until_the_engine_is_done() {
    let engine = fake(2);
    let before = Bench::new(Vec::new());
    before.announce("p", "r0", &engine.url(), None);
    before.ready("p").await;
    let running = before
        .call("r0", "chunks=150 interval_ms=20")
        .await
        .unwrap()
        .into_body();
    let after = Bench::new(Vec::new());
    after.announce("p", "r0", &engine.url(), None);
    let pool = after.ready("p").await;
    assert_eq!((pool.slots_total, pool.slots_free), (2, 1));
    running.collect().await.unwrap();
    after.free("p", 2).await;
}

#[tokio::test]
async fn a_cancelled_stream_frees_its_slot_within_a_tenth_of_a_second() {
    let bench = Bench::new(Vec::new());
    let engine = fake(1);
    bench.announce("p", "r0", &engine.url(), None);
    bench.ready("p").await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let mut body = bench
            .call("r0", "chunks=1000000 interval_ms=10")
            .await
            .unwrap()
            .into_body();
        next(&mut body).await;
        drop(body);
        let since = Instant::now();
        bench.free("p", 1).await;
        took.push(since.elapsed());
    }
    // The middle one: a machine that is busy with other tests may hold up one or the other.
    took.sort_unstable();
    assert!(took[10] < Duration::from_millis(100), "{took:?}");
}

#[tokio::test]
async fn a_dead_engine_is_out_at_once_and_in_again_after_a_probe() {
    let bench = Bench::with(Vec::new(), |config| {
        config.asking.probe_interval = Duration::from_secs(3600);
    });
    let engine = fake(2);
    let port = engine.address().port();
    bench.announce("p", "r0", &engine.url(), None);
    bench.ready("p").await;
    let mut body = bench
        .call("r0", "chunks=1000000 interval_ms=5")
        .await
        .unwrap()
        .into_body();
    next(&mut body).await;
    engine.kill();
    let broken = body.collect().await.map(|_| ()).unwrap_err();
    assert_eq!(broken.to_string(), "the engine's answer broke off");
    bench
        .until("p", "out without waiting for the turn", |pool| !pool.ready)
        .await;

    let engine = fake_on(port, 2);
    // Out or in, a call never fails in another way than these.
    let first = bench.call("r0", "chunks=1").await;
    assert!(
        matches!(first, Ok(_) | Err(DoorError::NotReady)),
        "{first:?}",
        first = first.map(|_| ())
    );
    let pool = bench.ready("p").await;
    assert_eq!(pool.slots_free, 2, "the broken answer's slot is back");
    engine.kill();
    let refused = loop {
        match bench.call("r0", "chunks=1").await {
            Err(error) => break error,
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    assert!(
        matches!(
            refused,
            DoorError::Connect(_) | DoorError::NotReady | DoorError::Engine(_)
        ),
        "{refused}"
    );
    bench
        .until("p", "out", |pool| !pool.ready && pool.last_error.is_some())
        .await;
}

#[tokio::test]
async fn engines_that_hang_or_talk_nonsense_are_never_ready() {
    let bench = Bench::new(Vec::new());
    for (at, words) in [
        "fail=never",
        "fail=garbage",
        "fail=garbage_body",
        "fail=error",
        "fail=loading",
    ]
    .iter()
    .enumerate()
    {
        let engine = fake(1);
        engine.set_behaviour(behaviour(&format!("{words} everywhere=1")));
        let pool = format!("p{at}");
        bench.announce(&pool, "r0", &engine.url(), None);
        let seen = bench
            .until(&pool, "a reason", |pool| pool.last_error.is_some())
            .await;
        assert!(!seen.ready, "{words}");
        engine.set_behaviour(behaviour(""));
        bench.ready(&pool).await;
        engine.set_behaviour(behaviour(&format!("{words} everywhere=1")));
        // One that answers health checks with nonsense and 200 is well for all that a probe of health can see.
        if *words != "fail=garbage_body" {
            bench.until(&pool, "out again", |pool| !pool.ready).await;
        }
    }
}

#[tokio::test]
async fn a_handoff_may_not_lead_elsewhere_or_lie_about_its_name() {
    let bench = Bench::new(Vec::new());
    bench.announce("p", "r0", "http://192.0.2.1:80", Some(4));
    let pool = bench
        .until("p", "refused", |pool| pool.last_error.is_some())
        .await;
    assert!(pool.last_error.unwrap().contains("not on loopback"));
    assert!(matches!(
        bench.call("r0", "x").await,
        Err(DoorError::UnknownReplica { .. })
    ));
    std::fs::write(bench.directory.join("q_r0.json"), "{\"pool_id\":\"q\"").unwrap();
    let engine = fake(1);
    bench.announce("s", "r0", &engine.url(), None);
    bench.ready("s").await;
    assert_eq!(bench.door().snapshot().len(), 2, "the bad file is nobody");
}

#[tokio::test]
async fn a_pool_may_name_engines_that_run_already() {
    let (one, two) = (fake(2), fake(2));
    let text = format!(
        "id = 'p'\nengine = 'openai'\nurls = ['{}/v1', '{}/v1/']\nslots = 3\naliases = ['small']",
        one.url(),
        two.url()
    );
    let bench = Bench::new(vec![toml::from_str(&text).unwrap()]);
    let pool = bench.until("p", "both", |pool| pool.slots_total == 6).await;
    assert_eq!(pool.replicas[1].models[0].aliases, ["small"]);
    let answer = bench
        .call("r1", "chunks=2")
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert!(answer.ends_with(b"[DONE]\n\n"));
    assert_eq!((one.stats().completed, two.stats().completed), (0, 1));
    // Such an engine does not tell about its slots: one that was left is free at once.
    let mut body = bench
        .call("r0", "chunks=1000000 interval_ms=50")
        .await
        .unwrap()
        .into_body();
    next(&mut body).await;
    drop(body);
    assert_eq!(bench.door().pool(&"p".parse().unwrap()).unwrap().slots_free, 6);
    one.kill();
    let pool = bench
        .until("p", "one is left", |pool| pool.slots_total == 3)
        .await;
    assert!(pool.ready && pool.last_error.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_clients_that_leave_at_random_leaks_nothing() {
    let bench = Bench::new(Vec::new());
    let engine = fake(8);
    bench.announce("p", "r0", &engine.url(), None);
    bench.ready("p").await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..1000_u64 {
        let door = bench.door().clone();
        clients.spawn(async move {
            let patience = Duration::from_millis(client * 7919 % 60);
            let asked = async {
                loop {
                    match call(&door, "r0", "chunks=10 interval_ms=2").await {
                        Ok(response) => return response.into_body().collect().await.is_ok(),
                        Err(DoorError::SlotsTaken) => tokio::time::sleep(Duration::from_millis(3)).await,
                        Err(error) => panic!("{error}"),
                    }
                }
            };
            tokio::time::timeout(patience, asked).await.unwrap_or(false)
        });
    }
    let mut answered = 0;
    while let Some(done) = clients.join_next().await {
        answered += u32::from(done.unwrap());
    }
    let pool = bench.free("p", 8).await;
    assert_eq!(pool.slots_total, 8);
    assert!(pool.replicas[0].leases.is_empty());
    assert!(answered > 0);
    until("the engine is idle", || engine.stats().active == 0).await;
}

#[tokio::test]
async fn reports_follow_changes() {
    let bench = Bench::new(Vec::new());
    let mut reports = bench.door().reports();
    let engine = fake(1);
    bench.announce("p", "r0", &engine.url(), None);
    let seen = tokio::time::timeout(
        crate::bench::LONG,
        reports.wait_for(|pools| pools.iter().any(|pool| pool.ready)),
    )
    .await;
    assert_eq!(seen.unwrap().unwrap()[0].slots_free, 1);
    let mut body = bench
        .call("r0", "chunks=1000000 interval_ms=5")
        .await
        .unwrap()
        .into_body();
    next(&mut body).await;
    tokio::time::timeout(
        crate::bench::LONG,
        reports.wait_for(|pools| pools[0].slots_free == 0),
    )
    .await
    .unwrap()
    .unwrap();
    drop(body);
    tokio::time::timeout(
        crate::bench::LONG,
        reports.wait_for(|pools| pools[0].slots_free == 1),
    )
    .await
    .unwrap()
    .unwrap();
}

#[tokio::test]
async fn a_drained_pool_takes_nothing_until_it_is_reloaded() {
    let mut bench = Bench::new(Vec::new());
    let engine = fake(2);
    bench.announce("p", "r0", &engine.url(), None);
    bench.ready("p").await;
    let control = bench.node.as_ref().unwrap().control();
    let (known, unknown) = ("p".parse().unwrap(), "nope".parse().unwrap());
    let running = bench
        .call("r0", "chunks=30 interval_ms=10")
        .await
        .unwrap()
        .into_body();
    assert!(control.drain(&unknown, Duration::ZERO).await.is_err());
    for _ in 0..2 {
        control.drain(&known, Duration::from_secs(5)).await.unwrap();
    }
    assert!(matches!(bench.call("r0", "x").await, Err(DoorError::Draining)));
    bench
        .until("p", "draining", |pool| pool.draining && !pool.ready)
        .await;
    let text = running.collect().await.unwrap().to_bytes();
    assert!(text.ends_with(b"[DONE]\n\n"), "what runs is finished");
    control.reload(&known).await.unwrap();
    bench.ready("p").await;
    control.drain(&known, Duration::from_secs(5)).await.unwrap();
    bench.until("p", "draining", |pool| pool.draining).await;
    control.undrain(&known).await.unwrap();
    bench.ready("p").await;

    let running = bench
        .call("r0", "chunks=20 interval_ms=10")
        .await
        .unwrap()
        .into_body();
    let reading = tokio::spawn(running.collect());
    let left = bench
        .node
        .take()
        .unwrap()
        .shutdown(Duration::from_secs(10), true)
        .await;
    assert_eq!(left, 0);
    assert!(
        reading
            .await
            .unwrap()
            .unwrap()
            .to_bytes()
            .ends_with(b"[DONE]\n\n")
    );
}
