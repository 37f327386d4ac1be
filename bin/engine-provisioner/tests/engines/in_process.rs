//! Engines kept by a thread of this process: real ones, and scripts that misbehave.

use std::time::{Duration, Instant};

use crate::server::{Reply, Server};
use crate::support::{LONG, Setup, ask, identity, kill_9};
use engine_provisioner::life::Policy;
use engine_provisioner::recipe::Recipe;
use engine_provisioner::{
    EngineSpec, EngineStatus, InProcess, Phase, Progress, Supervision, get_engine, supervise,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

async fn status_when(
    status: &mut watch::Receiver<EngineStatus>,
    mut is: impl FnMut(&EngineStatus) -> bool,
) -> EngineStatus {
    let waited = tokio::time::timeout(LONG, status.wait_for(|status| is(status))).await;
    waited
        .unwrap_or_else(|_| panic!("not within {LONG:?}"))
        .unwrap()
        .clone()
}

async fn ready(engine: &InProcess) -> EngineStatus {
    status_when(&mut engine.status(), |status| status.phase == Phase::Ready).await
}

#[tokio::test]
async fn a_real_engine_is_started_killed_started_again_and_ended() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let spec_hash = spec.hash();
    let engine = InProcess::start(spec, setup.settings.clone()).unwrap();
    let status = ready(&engine).await;
    let handoff = setup.handoff().unwrap();
    assert_eq!(Some(&handoff.url), status.url.as_ref());
    assert_eq!(
        (handoff.slots, handoff.model.as_deref()),
        (Some(2), Some("remuda-demo"))
    );
    assert_eq!(
        (handoff.engine.as_str(), handoff.spec_hash),
        ("llamacpp", Some(spec_hash))
    );
    assert_eq!(handoff.supervisor_pid, Some(std::process::id()));
    assert!(!handoff.engine_version.is_empty());
    assert!(handoff.url.starts_with("http://127.0.0.1:"));
    let url = handoff.url.clone();
    let answer = tokio::task::spawn_blocking(move || ask(&url, "3*67"))
        .await
        .unwrap();
    assert_eq!(answer, "201");

    let first = setup.handoff().map(|handoff| identity(&handoff)).unwrap();
    kill_9(&first);
    let mut states = engine.status();
    let down = status_when(&mut states, |status| status.phase == Phase::BackingOff).await;
    assert!(down.last_error.unwrap().contains("was ended by signal 9"));
    assert!(down.url.is_none() && down.failures == 1);
    let again = ready(&engine).await;
    assert_ne!(again.pid, Some(first.pid));
    assert_eq!(again.last_error, None);
    assert_eq!(setup.handoff().unwrap().pid, again.pid);

    let second = setup.handoff().map(|handoff| identity(&handoff)).unwrap();
    engine.stop();
    assert_eq!(engine.stopped().await.phase, Phase::Stopped);
    assert!(!second.is_alive());
    assert!(setup.handoff().is_none());
}

/// Keeps an engine with a patience of its own; for engines that do not work.
fn keep(
    setup: &Setup,
    spec: EngineSpec,
    policy: Policy,
) -> (watch::Receiver<EngineStatus>, CancellationToken) {
    let (supervision, status) = Supervision::new(spec, setup.settings.clone()).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(supervise(supervision.with_policy(policy), stop.clone()));
    (status, stop)
}

fn hasty() -> Policy {
    Policy {
        ready_timeout: Duration::from_millis(300),
        stop_timeout: Duration::from_millis(200),
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(2),
        pause_beyond_budget: Duration::from_millis(400),
        ..Policy::default()
    }
}

#[tokio::test]
async fn one_that_ends_at_once_is_tried_within_its_budget_and_its_last_words_are_told() {
    let setup = Setup::new();
    let spec = setup.script_spec("echo 'loading'; echo 'error: no such tensor' >&2; exit 3");
    let (mut status, stop) = keep(&setup, spec, hasty());
    let began = Instant::now();
    let down = status_when(&mut status, |status| status.failures >= 6).await;
    let error = down.last_error.unwrap();
    assert!(
        error.contains("exit code 3") && error.contains("error: no such tensor"),
        "{error}"
    );
    assert!(error.contains("pool-0_r0.engine.log"), "{error}");
    assert_eq!(down.engine_version, "script");
    let within_budget = began.elapsed();
    let began = Instant::now();
    status_when(&mut status, |status| status.failures >= 7).await;
    assert!(
        began.elapsed() >= Duration::from_millis(250),
        "beyond the budget it is tried slowly"
    );
    assert!(within_budget < LONG);
    stop.cancel();
    status_when(&mut status, |status| status.phase == Phase::Stopped).await;
    assert!(setup.handoff().is_none());
}

#[tokio::test]
async fn one_that_never_answers_and_ignores_sigterm_is_killed() {
    let setup = Setup::new();
    let (mut status, stop) = keep(
        &setup,
        setup.script_spec("trap '' TERM; while :; do sleep 0.05; done"),
        hasty(),
    );
    let starting = status_when(&mut status, |status| status.phase == Phase::Starting).await;
    assert!(starting.url.is_none() && starting.pid.is_some());
    let down = status_when(&mut status, |status| status.phase == Phase::BackingOff).await;
    let error = down.last_error.unwrap();
    assert!(
        error.starts_with("the engine did not answer within 0 s of its start"),
        "{error}"
    );
    assert!(
        process::Identity::of(starting.pid.unwrap()).is_none(),
        "it is gone before the next is started"
    );
    stop.cancel();
    status_when(&mut status, |status| status.phase == Phase::Stopped).await;
}

#[tokio::test]
async fn one_that_cannot_be_started_says_why_and_goes_on_trying() {
    let setup = Setup::new();
    let mut spec = setup.script_spec("exit 0");
    spec.model = "no-such-model".to_owned();
    let (mut status, stop) = keep(&setup, spec, hasty());
    let down = status_when(&mut status, |status| status.phase == Phase::BackingOff).await;
    assert!(
        down.last_error
            .unwrap()
            .starts_with("there is no model \"no-such-model\"")
    );
    std::fs::create_dir_all(setup.directory.path()).unwrap();
    status_when(&mut status, |status| status.failures > 1).await;
    stop.cancel();
    status_when(&mut status, |status| status.phase == Phase::Stopped).await;

    let mut spec = setup.script_spec("exit 0");
    spec.program = Some("/nowhere/llama-server".into());
    let (mut status, stop) = keep(&setup, spec, hasty());
    let down = status_when(&mut status, |status| status.phase == Phase::BackingOff).await;
    let error = down.last_error.unwrap();
    assert!(
        error.starts_with("cannot get the engine llamacpp: /nowhere/llama-server does not run here"),
        "{error}"
    );
    stop.cancel();
    status_when(&mut status, |status| status.phase == Phase::Stopped).await;
}

#[tokio::test]
async fn one_that_hangs_is_killed_and_started_again() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let policy = Policy {
        hung_after: Duration::from_millis(300),
        probe_interval: Duration::from_millis(20),
        probe_timeout: Duration::from_millis(500),
        stop_timeout: Duration::from_millis(200),
        ..Policy::default()
    };
    let (mut status, stop) = keep(&setup, spec, policy);
    let first = status_when(&mut status, |status| status.phase == Phase::Ready).await;
    let pid = first.pid.unwrap().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-STOP", &pid])
            .status()
            .unwrap()
            .success()
    );
    let down = status_when(&mut status, |status| status.phase == Phase::Stopping).await;
    assert!(
        setup.handoff().is_none(),
        "it is taken back before the engine is ended"
    );
    assert!(
        down.last_error
            .unwrap()
            .starts_with("the engine has not answered for")
    );
    // A stopped process does not act on SIGTERM: it takes the kill.
    let second = status_when(&mut status, |status| status.phase == Phase::Ready).await;
    assert_ne!(second.pid, first.pid);
    assert_eq!(setup.handoff().unwrap().pid, second.pid);
    stop.cancel();
    status_when(&mut status, |status| status.phase == Phase::Stopped).await;
}

#[tokio::test]
async fn a_handoff_that_cannot_be_written_is_written_later() {
    let setup = Setup::new();
    let Some(spec) = setup.real_spec() else { return };
    let policy = Policy {
        probe_interval: Duration::from_millis(20),
        ..Policy::default()
    };
    // A directory in its place.
    let place = setup.settings.handoff_dir.join("pool-0_r0.json");
    std::fs::create_dir_all(place.join("in the way")).unwrap();
    let (mut status, stop) = keep(&setup, spec, policy);
    let ready = status_when(&mut status, |status| status.phase == Phase::Ready).await;
    let error = ready.last_error.unwrap();
    assert!(
        error.starts_with("the engine answers, but its handoff cannot be written"),
        "{error}"
    );
    std::fs::remove_dir_all(&place).unwrap();
    let told = status_when(&mut status, |status| status.last_error.is_none()).await;
    assert_eq!(setup.handoff().unwrap().pid, told.pid);
    stop.cancel();
    status_when(&mut status, |status| status.phase == Phase::Stopped).await;
}

#[tokio::test]
async fn a_model_from_the_hub_is_pulled_once_and_served() {
    let mut setup = Setup::new();
    let Some(mut spec) = setup.real_spec() else { return };
    let content = std::fs::read(&spec.model).unwrap();
    let recipe = Recipe::load("llamacpp", None).unwrap();
    let engine = get_engine(&recipe, &setup.settings, None, None, &Progress::none())
        .await
        .unwrap();
    setup.settings.engine_program = Some(engine.program);
    let digest = model_store::Digest::of(&content);
    let hub = Server::start(move |request| {
        let reply = match request.path.as_str() {
            "/org/repo/resolve/main/Tiny.gguf" => Reply::range(request, &content).cut_after(200_000),
            _ => Reply::new(404, ""),
        };
        reply.header("X-Linked-Etag", format!("\"{digest}\""))
    });
    setup.settings.hub_endpoint = hub.url("");
    setup.settings.cache_dir = Some(setup.directory.path().join("cache"));
    spec.model = "hf:org/repo/Tiny.gguf".to_owned();
    for spec in [
        spec.clone(),
        EngineSpec {
            model: "Tiny".to_owned(),
            ..spec
        },
    ] {
        let engine = InProcess::start(spec, setup.settings.clone()).unwrap();
        let url = ready(&engine).await.url.unwrap();
        assert_eq!(setup.handoff().unwrap().model.as_deref(), Some("Tiny"));
        let answer = tokio::task::spawn_blocking(move || ask(&url, "9*9"))
            .await
            .unwrap();
        assert_eq!(answer, "81");
        engine.stop();
        engine.stopped().await;
    }
    let gets = hub
        .asked()
        .iter()
        .filter(|request| request.method == "GET")
        .count();
    assert!(
        (2..10).contains(&gets),
        "cut and resumed, and not asked again: {gets}"
    );
}
