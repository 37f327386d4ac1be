//! Engines that the node keeps: the real engine and the demo model, where they are at hand.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use pool_managerd::{Door, DoorError, PoolSettings};
use pool_registry_types::{Handoff, PoolReport, ReplicaState};
use process::Identity;

use crate::bench::{Bench, LONG, chat, holder, until};
use crate::program::Daemon;

/// The demo model. None: it or the engine is not here, and the test is skipped.
fn demo_model() -> Option<PathBuf> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/remuda-demo.gguf");
    let cached = engine_provisioner::Settings::default()
        .cache_dir()
        .join("engines/llamacpp");
    let cached = std::fs::read_dir(cached).into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = cached.map(|entry| entry.path()).collect();
    places.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    if model.is_file() && places.iter().any(|place| place.join("llama-server").is_file()) {
        return Some(model);
    }
    skipped("the demo model or llama-server is not there (engine-provisioner fetch)");
    None
}

/// The program beside ours. None: it is not built, and the test is skipped.
fn provisioner() -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_BIN_EXE_pool-managerd")).with_file_name("engine-provisioner");
    if program.is_file() {
        return Some(program);
    }
    skipped("engine-provisioner is not built");
    None
}

fn skipped(missing: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "in CI nothing is skipped: {missing}"
    );
    eprintln!("skipped: {missing}");
}

fn pool(model: &Path) -> PoolSettings {
    let mut pool = PoolSettings::with_model("p".parse().unwrap(), model.display().to_string());
    pool.slots = Some(2);
    pool.context_length = 1024;
    pool.threads = Some(1);
    pool
}

fn handoff(directory: &Path, replica: &str) -> Option<Handoff> {
    serde_json::from_slice(&std::fs::read(directory.join(format!("p_{replica}.json"))).ok()?).ok()
}

fn engine(directory: &Path, replica: &str) -> Option<Identity> {
    Identity::of(handoff(directory, replica)?.pid?)
}

fn kill_9(identity: &Identity) {
    let pid = identity.pid.to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
}

/// Asks any replica that takes it.
async fn ask(door: &Door, question: &str) -> Result<String, DoorError> {
    let report = door.pool(&"p".parse().unwrap()).unwrap();
    let mut last = DoorError::NotReady;
    for replica in report
        .replicas
        .iter()
        .filter(|replica| replica.state == ReplicaState::Ready)
    {
        match door
            .call(
                &report.pool_id,
                &replica.replica_id,
                &holder(),
                chat(question, false),
            )
            .await
        {
            Ok(response) => {
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
                return Ok(answer["choices"][0]["message"]["content"]
                    .as_str()
                    .unwrap()
                    .to_owned());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[tokio::test]
async fn a_killed_engine_is_back_soon_and_its_slots_with_it() {
    let Some(model) = demo_model() else { return };
    let mut bench = Bench::new(vec![pool(&model)]);
    bench.ready("p").await;
    assert_eq!(ask(bench.door(), "3*67").await.unwrap(), "201");
    let first = engine(&bench.directory, "r0").unwrap();
    let (id, replica) = ("p".parse().unwrap(), "r0".parse().unwrap());
    let running = bench
        .door()
        .call(&id, &replica, &holder(), chat("count", true))
        .await
        .unwrap();
    kill_9(&first);
    assert!(running.into_body().collect().await.is_err(), "no silent end");
    bench.until("p", "out", |pool| !pool.ready).await;
    let pool = bench.ready("p").await;
    assert_eq!((pool.slots_total, pool.slots_free, pool.last_error), (2, 2, None));
    assert_eq!(ask(bench.door(), "3*67").await.unwrap(), "201");
    let second = engine(&bench.directory, "r0").unwrap();
    assert_eq!(
        bench
            .node
            .take()
            .unwrap()
            .shutdown(Duration::from_secs(5), true)
            .await,
        0
    );
    assert!(!second.is_alive() && handoff(&bench.directory, "r0").is_none());
}

#[tokio::test]
async fn a_reload_never_leaves_the_pool_without_an_engine_that_answers() {
    let Some(model) = demo_model() else { return };
    let bench = Bench::new(vec![pool(&model)]);
    bench.ready("p").await;
    let old = engine(&bench.directory, "r0").unwrap();
    let (door, stop) = (bench.door().clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let asking = tokio::spawn(async move {
        let mut answers = 0;
        while !stopped.load(Ordering::Relaxed) {
            // Between looking and asking a replica may have begun to drain; then the other one takes it.
            let answer = match ask(&door, "3*67").await {
                Err(DoorError::Draining) => ask(&door, "3*67").await,
                answer => answer,
            };
            assert_eq!(answer.unwrap(), "201");
            answers += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        answers
    });
    let control = bench.node.as_ref().unwrap().control();
    control.reload(&"p".parse().unwrap()).await.unwrap();
    let only_new = |pool: &PoolReport| {
        pool.ready && pool.replicas.len() == 1 && pool.replicas[0].replica_id.as_str() == "r1"
    };
    bench.until("p", "only the new one", only_new).await;
    stop.store(true, Ordering::Relaxed);
    assert!(asking.await.unwrap() > 10);
    assert!(!old.is_alive());
    assert!(engine(&bench.directory, "r1").unwrap().is_alive());
}

#[tokio::test]
async fn engines_outlive_a_killed_daemon_and_are_adopted_kept_or_ended() {
    let (Some(model), Some(provisioner)) = (demo_model(), provisioner()) else {
        return;
    };
    let provisioner = provisioner.to_str().unwrap();
    let args = ["--engine-provisioner", provisioner];
    let root = tempfile::tempdir().unwrap();
    let settings = root.path().join("remuda.toml");
    let text = |id: &str| {
        format!(
            "[[pools]]\nid = '{id}'\nmodel = '{}'\nslots = 2\nthreads = 1\n",
            model.display()
        )
    };
    std::fs::write(&settings, text("p")).unwrap();
    let directory = root.path().join(".runtime/engines");

    let mut daemon = Daemon::start_in(root, &args, &[]);
    daemon.until(&daemon.client(), "p", "", |pool| pool.ready).await;
    let first = engine(&directory, "r0").unwrap();
    daemon.signal("-KILL");
    daemon.ended();
    assert!(first.is_alive());

    let mut daemon = daemon.again(&args);
    daemon.until(&daemon.client(), "p", "", |pool| pool.ready).await;
    assert_eq!(engine(&directory, "r0").as_ref(), Some(&first), "adopted");
    daemon.signal("-TERM");
    assert_eq!(daemon.ended(), Some(0));
    assert!(
        !first.is_alive() && handoff(&directory, "r0").is_none(),
        "ended with the daemon"
    );

    let mut daemon = daemon.again(&[args[0], args[1], "--keep-engines"]);
    daemon.until(&daemon.client(), "p", "", |pool| pool.ready).await;
    let second = engine(&directory, "r0").unwrap();
    daemon.signal("-TERM");
    assert_eq!(daemon.ended(), Some(0));
    assert!(second.is_alive(), "left for the next daemon");

    // Nobody wants this pool any more.
    std::fs::write(&settings, text("other")).unwrap();
    let mut daemon = daemon.again(&args);
    daemon
        .until(&daemon.client(), "other", "", |pool| pool.ready)
        .await;
    until("the orphan is ended", || !second.is_alive()).await;
    // The engine of a daemon that never comes back ends by itself.
    let third = Identity::of(
        serde_json::from_slice::<Handoff>(&std::fs::read(directory.join("other_r0.json")).unwrap())
            .unwrap()
            .pid
            .unwrap(),
    )
    .unwrap();
    daemon.signal("-TERM");
    assert_eq!(daemon.ended(), Some(0));
    assert!(!third.is_alive());
}

#[tokio::test]
async fn engines_of_a_daemon_that_never_comes_back_end_by_themselves() {
    let (Some(model), Some(provisioner)) = (demo_model(), provisioner()) else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let text = format!(
        "[[pools]]\nid = 'p'\nmodel = '{}'\nthreads = 1\n",
        model.display()
    );
    std::fs::write(root.path().join("remuda.toml"), text).unwrap();
    let directory = root.path().join(".runtime/engines");
    let args = [
        "--engine-provisioner",
        provisioner.to_str().unwrap(),
        "--engines-wait-ms",
        "1000",
    ];
    let mut daemon = Daemon::start_in(root, &args, &[]);
    daemon.until(&daemon.client(), "p", "", |pool| pool.ready).await;
    let engine = engine(&directory, "r0").unwrap();
    daemon.signal("-KILL");
    daemon.ended();
    let since = Instant::now();
    until("the engine has ended", || !engine.is_alive()).await;
    assert!(since.elapsed() < LONG);
}
