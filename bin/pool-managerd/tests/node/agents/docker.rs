//! The same CLIs in Docker sandboxes, each in an image of its own, by a Docker daemon of the test's own.

use pool_registry_types::{AgentOutcome, WarmLevel};
use remuda_tests::Dockerd;

use super::place::Place;
use crate::bench::until;

/// A node whose pool has `driver = "docker"`. None where something is missing.
async fn place(daemon: &Dockerd, agent: &str) -> Option<Place> {
    Place::real_with(agent, |_, pool, config| {
        pool.driver = Some("docker".to_owned());
        config.docker_socket = daemon.socket();
    })
    .await
}

/// The containers that there are, also those that have ended.
fn containers(daemon: &Dockerd) -> Vec<String> {
    let output = daemon.client().args(["ps", "--all", "--quiet"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

async fn runs_in_docker(agent: &'static str) {
    let starting = tokio::task::spawn_blocking(move || Dockerd::start_with("docker", Some(agent)));
    let Some(daemon) = starting.await.unwrap() else {
        return;
    };
    let Some(place) = place(&daemon, agent).await else {
        return;
    };
    let first = place.run(place.asked("ann", "the word is walnut")).await;
    assert_eq!(first.outcome(), &AgentOutcome::Completed, "{:?}", first.events);
    assert_eq!(first.text(), "201");
    assert_ne!(first.level(), WarmLevel::Hot);
    let seen = format!("{:?}", place.provider.take_seen());
    assert!(seen.contains("walnut"), "{seen}");
    let second = place.run(place.asked("ann", "which word?")).await;
    assert_eq!(second.outcome(), &AgentOutcome::Completed, "{:?}", second.events);
    assert_eq!((second.level(), second.text().as_str()), (WarmLevel::Hot, "201"));
    let seen = format!("{:?}", place.provider.take_seen());
    assert!(!seen.contains("walnut"), "{seen}");

    // Ann's, and the one that waits. A node that ends leaves none.
    until("two containers", || containers(&daemon).len() == 2).await;
    let place = place.restarted().await;
    until("the one that waits", || containers(&daemon).len() == 1).await;
    let again = place.run(place.asked("ann", "3*67")).await;
    assert_eq!(again.text(), "201", "{:?}", again.events);
    drop(place);
}

#[tokio::test]
async fn claude_code_runs_in_docker() {
    runs_in_docker("claude").await;
}

#[tokio::test]
async fn codex_runs_in_docker() {
    runs_in_docker("codex").await;
}

#[tokio::test]
async fn gemini_runs_in_docker() {
    runs_in_docker("gemini").await;
}

/// It knows a model of one's own by another name than it is asked for by, so its turn ends with that, said by itself.
#[tokio::test]
async fn opencode_starts_in_docker() {
    let starting = tokio::task::spawn_blocking(|| Dockerd::start_with("docker", Some("opencode")));
    let Some(daemon) = starting.await.unwrap() else {
        return;
    };
    let Some(place) = place(&daemon, "opencode").await else {
        return;
    };
    let run = place.run(place.asked("ann", "3*67")).await;
    assert!(run.session().is_some(), "{:?}", run.events);
}
