//! The `engine-provisioner` program as the parent of a real engine: killed, orphaned, asked twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{LONG, Setup, identity, kill_9, wait_for};
use engine_provisioner::launch::{self, Keeper, Launcher};
use engine_provisioner::{Claim, InProcess, Phase, Supervision};
use process::{Identity, LockFile, wait_until_gone};

#[test]
fn the_engine_dies_with_its_provisioner_at_once() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let file = setup.write_spec(&spec);
    let provisioner = setup.start(&["run", "--spec", &file]);
    let handoff = setup.next_handoff(None);
    let engine = identity(&handoff);
    assert_eq!(handoff.supervisor_pid, Some(provisioner.identity().pid));
    kill_9(provisioner.identity());
    assert!(
        wait_until_gone(&engine, Duration::from_secs(1)),
        "the engine outlived its provisioner"
    );
    assert!(setup.handoff().is_some(), "nobody was left to remove it");

    let next = setup.start(&["run", "--spec", &file]);
    let second = setup.next_handoff(handoff.pid);
    assert_eq!(second.supervisor_pid, Some(next.identity().pid));
    next.terminate();
    let exit = next.wait(LONG).unwrap();
    assert!(exit.is_success(), "{exit}: {}", setup.log());
    assert!(!identity(&second).is_alive());
    assert!(setup.handoff().is_none());
}

#[test]
fn asked_twice_it_keeps_what_is_right_and_refuses_what_is_not() {
    let setup = Setup::new();
    let Some(mut spec) = setup.real_spec() else { return };
    let file = setup.write_spec(&spec);
    let first = setup.start(&["run", "--spec", &file]);
    let before = setup.next_handoff(None);
    let again = setup.start(&["run", "--spec", &file]).wait(LONG).unwrap();
    assert!(again.is_success(), "{again}: {}", setup.log());
    assert_eq!(setup.handoff(), Some(before));
    spec.slots = 1;
    let other = setup
        .start(&["run", "--spec", &setup.write_spec(&spec)])
        .wait(LONG)
        .unwrap();
    assert_eq!(other.code, Some(1));
    assert!(
        setup.log().contains("with other settings; end that one first"),
        "{}",
        setup.log()
    );
    assert!(first.exit().is_none());
}

#[test]
fn it_ends_its_engine_and_itself_when_the_daemon_stays_away() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let (file, lock) = (
        setup.write_spec(&spec),
        setup.directory.path().join("daemon.lock"),
    );
    let daemon = LockFile::try_acquire(&lock).unwrap().unwrap();
    let lock_path = lock.display().to_string();
    let provisioner = setup.start(&[
        "run",
        "--spec",
        &file,
        "--daemon-lock",
        &lock_path,
        "--daemon-gone-after-ms",
        "2000",
    ]);
    let engine = identity(&setup.next_handoff(None));

    // A restart of the daemon within the time changes nothing.
    drop(daemon);
    std::thread::sleep(Duration::from_millis(500));
    let daemon = LockFile::acquire(&lock, LONG).unwrap().unwrap();
    assert_eq!(
        provisioner.wait(Duration::from_millis(2500)),
        None,
        "{}",
        setup.log()
    );
    assert!(engine.is_alive());

    drop(daemon);
    let began = Instant::now();
    let exit = provisioner.wait(LONG).unwrap();
    assert!(exit.is_success(), "{exit}: {}", setup.log());
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(1500) && took < Duration::from_secs(8),
        "{took:?}"
    );
    assert!(!engine.is_alive());
    assert!(setup.handoff().is_none());
}

#[test]
fn a_launched_provisioner_outlives_its_launcher_and_is_found_again() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let lock = setup.directory.path().join("daemon.lock");
    let _daemon = LockFile::try_acquire(&lock).unwrap().unwrap();
    let launcher = Launcher {
        program: env!("CARGO_BIN_EXE_engine-provisioner").into(),
        settings: setup.settings.clone(),
        daemon_lock: lock,
        daemon_gone_after: Duration::from_secs(45),
    };
    let identity_of_provisioner = launcher.launch(&spec).unwrap();
    let handoff_dir = &setup.settings.handoff_dir;
    let keeper = wait_for("the keeper", || {
        launch::keeper(handoff_dir, &spec.pool_id, &spec.replica_id).unwrap()
    });
    assert_eq!(
        (&keeper.identity, &keeper.spec_hash),
        (&identity_of_provisioner, &spec.hash())
    );
    let ready = wait_for("the state", || {
        launch::status(handoff_dir, &spec.pool_id, &spec.replica_id)
            .filter(|status| status.phase == Phase::Ready)
    });
    assert_eq!(ready.url, setup.handoff().map(|handoff| handoff.url));
    assert_eq!(
        launch::keepers(handoff_dir).unwrap(),
        std::slice::from_ref(&keeper)
    );
    let engine = identity(&setup.handoff().unwrap());
    assert!(keeper.stop(Duration::from_secs(20)).unwrap());
    assert!(!keeper.is_alive() && !engine.is_alive());
    assert_eq!(launch::keepers(handoff_dir).unwrap(), []);
    let last = launch::status(handoff_dir, &spec.pool_id, &spec.replica_id).unwrap();
    assert_eq!(last.phase, Phase::Stopped);
}

#[tokio::test]
async fn an_engine_that_somebody_keeps_is_adopted_and_taken_over_when_they_die() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let provisioner = setup.start(&["run", "--spec", &setup.write_spec(&spec)]);
    let before = setup.next_handoff(None);
    let engine = InProcess::start(spec, setup.settings.clone()).unwrap();
    let mut states = engine.status();
    let adopted = states
        .wait_for(|status| status.phase == Phase::Ready)
        .await
        .unwrap()
        .clone();
    assert!(adopted.adopted);
    assert_eq!(adopted.pid, before.pid);
    assert_eq!(
        setup.handoff(),
        Some(before.clone()),
        "nothing that is right is changed"
    );

    kill_9(provisioner.identity());
    let waited = states.wait_for(|status| status.phase == Phase::Ready && !status.adopted);
    let own = tokio::time::timeout(LONG, waited).await.unwrap().unwrap().clone();
    assert_ne!(own.pid, before.pid);
    engine.stop();
    engine.stopped().await;
    assert!(setup.handoff().is_none());
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_exit_code_64() {
    let setup = Setup::new();
    let file = setup.directory.path().join("spec.json");
    std::fs::write(
        &file,
        "{\"pool_id\":\"p\",\n\"replica_id\":\"r\",\"model\":\"m\",\n\"slotz\":1}",
    )
    .unwrap();
    let exit = setup
        .start(&["run", "--spec", &file.display().to_string()])
        .wait(LONG)
        .unwrap();
    assert_eq!(exit.code, Some(64), "{}", setup.log());
    assert!(
        setup.log().contains("spec.json:3: unknown field `slotz`"),
        "{}",
        setup.log()
    );
    let exit = setup
        .start(&["run", "--spec", "x", "--no-such-flag"])
        .wait(LONG)
        .unwrap();
    assert_eq!(exit.code, Some(64));
    let exit = setup.start(&["recipes"]).wait(LONG).unwrap();
    assert!(exit.is_success());
    assert!(setup.log().contains("llamacpp   llama.cpp"), "{}", setup.log());
}

#[test]
fn who_only_looks_for_a_keeper_never_passes_for_one() {
    let setup = Setup::new();
    let spec = setup.script_spec("exit 0");
    let (supervision, _status) = Supervision::new(spec.clone(), setup.settings.clone()).unwrap();
    let mut first = supervision;
    assert_eq!(first.claim().unwrap(), Claim::Ours);
    let keeper = launch::keeper(&setup.settings.handoff_dir, &spec.pool_id, &spec.replica_id).unwrap();
    let (mut second, _status) = Supervision::new(spec.clone(), setup.settings.clone()).unwrap();
    assert_eq!(second.claim().unwrap(), Claim::Taken(keeper.clone()));
    drop(first);
    let keeper = keeper.unwrap();
    assert_eq!(
        launch::keeper(&setup.settings.handoff_dir, &spec.pool_id, &spec.replica_id).unwrap(),
        None
    );

    // One that was killed left its note, and somebody looks again and again.
    let dead = Identity {
        start_time_ticks: keeper.identity.start_time_ticks + 1,
        ..keeper.identity.clone()
    };
    let note = serde_json::to_string(&Keeper {
        identity: dead,
        ..keeper
    })
    .unwrap();
    let lock = setup.settings.handoff_dir.join("provisioner/pool-0_r0.lock");
    let done = Arc::new(AtomicBool::new(false));
    let (handoff_dir, looking) = (setup.settings.handoff_dir.clone(), Arc::clone(&done));
    let watcher = std::thread::spawn(move || {
        while !looking.load(Ordering::Relaxed) {
            assert!(
                launch::keepers(&handoff_dir)
                    .unwrap()
                    .iter()
                    .all(Keeper::is_alive)
            );
        }
    });
    for _ in 0..200 {
        std::fs::write(&lock, &note).unwrap();
        let (mut next, _status) = Supervision::new(spec.clone(), setup.settings.clone()).unwrap();
        assert_eq!(next.claim().unwrap(), Claim::Ours);
    }
    done.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
}
