//! Agent pools that are drained and reloaded while they run.

use std::collections::BTreeSet;
use std::time::Duration;

use pool_managerd::{AgentEvents, CommandError, DoorError, NodeControl};
use pool_registry_types::{AgentEvent, AgentOutcome, PoolId};

use super::place::{Place, told};
use crate::bench::{LONG, until};

fn control(place: &Place) -> (NodeControl, PoolId) {
    let control = place.bench.node.as_ref().unwrap().control();
    (control, place.agent.parse().unwrap())
}

/// The names of the sandboxes that there are.
fn sandboxes(place: &Place) -> BTreeSet<String> {
    let entries = std::fs::read_dir(place.records()).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names
        .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
        .collect()
}

async fn first_text(events: &mut AgentEvents) {
    while !matches!(events.next().await, Some(AgentEvent::Text { .. })) {}
}

/// A run that goes on until it is dropped, and the name of its sandbox.
async fn endless(place: &Place, owner: &str) -> (AgentEvents, String) {
    let mut run = place.begin(place.plain(owner, "slow")).await.unwrap();
    let name = loop {
        if let Some(AgentEvent::Claimed { sandbox_id, .. }) = run.next().await {
            break sandbox_id;
        }
    };
    first_text(&mut run).await;
    (run, name)
}

#[tokio::test]
async fn a_reload_replaces_the_sandboxes_and_leaves_runs_alone() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let (control, pool) = control(&place);
    assert_eq!(place.ask("ann", "login ann's").await, "logged in");
    let (mut slow, bobs) = endless(&place, "bob").await;
    until("two that wait, ann's and bob's", || sandboxes(&place).len() == 4).await;
    let before = sandboxes(&place);
    control.reload(&pool).await.unwrap();
    // Runs are taken all the while.
    assert_eq!(place.ask("carol", "echo hello").await, "hello");
    until("the others are replaced", || {
        let now = sandboxes(&place);
        let left: Vec<_> = now.intersection(&before).collect();
        // Carol's may have been among them.
        left == [&bobs] && now.len() >= 3
    })
    .await;
    first_text(&mut slow).await;
    assert_eq!(place.ask("ann", "who").await, "ann's");
    // Not kept for the owner's next run: it is of before.
    drop(slow);
    until("bob's is replaced", || !sandboxes(&place).contains(&bobs)).await;
    assert_eq!(place.ask("bob", "echo 1").await, "1");
}

#[tokio::test]
async fn a_reload_reads_the_profile_again() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let (control, pool) = control(&place);
    let names = place.ask("ann", "environment").await;
    assert!(!names.contains("A_NEW_NAME"), "{names}");
    let profile = place.profile();
    let was = std::fs::read_to_string(&profile).unwrap();
    std::fs::write(&profile, format!("{was}\n[environment]\nA_NEW_NAME = \"1\"\n")).unwrap();
    control.reload(&pool).await.unwrap();
    let deadline = tokio::time::Instant::now() + LONG;
    while !place.ask("ann", "environment").await.contains("A_NEW_NAME") {
        assert!(tokio::time::Instant::now() < deadline, "it goes on as it was");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What cannot be a pool changes nothing, and says what is wrong.
    std::fs::write(&profile, format!("{was}\ncolour = \"red\"\n")).unwrap();
    let refused = control.reload(&pool).await.unwrap_err();
    assert!(matches!(refused, CommandError::Reload(_)), "{refused:?}");
    let said = format!("{refused}");
    assert!(
        said.contains("the pool stays as it is") && said.contains("colour"),
        "{said}"
    );
    let names = place.ask("ann", "environment").await;
    assert!(names.contains("A_NEW_NAME"), "{names}");
}

#[tokio::test]
async fn a_drained_pool_ends_what_runs_at_its_deadline() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let (control, pool) = control(&place);
    assert_eq!(place.ask("ann", "login ann's").await, "logged in");
    let (slow, bobs) = endless(&place, "bob").await;
    control.drain(&pool, LONG * 10).await.unwrap();
    let refused = place.begin(place.plain("ann", "echo 1")).await.map(|_| ());
    assert!(matches!(refused, Err(DoorError::Draining)), "{refused:?}");
    until("what is idle is ended", || {
        sandboxes(&place) == [bobs.clone()].into()
    })
    .await;
    // Whoever drains has changed their mind about the time.
    control.drain(&pool, Duration::ZERO).await.unwrap();
    let ended = told(std::time::Instant::now(), slow).await;
    match ended.outcome() {
        AgentOutcome::Failed { code, message, .. } => {
            assert_eq!(code, "WORKER_RESET");
            assert!(message.contains("the pool is drained"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    until("nothing is left", || sandboxes(&place).is_empty()).await;
    let report = place.bench.until("fake", "draining", |pool| pool.draining).await;
    assert!(
        !report.ready && report.slots_free == report.slots_total,
        "{report:?}"
    );

    control.undrain(&pool).await.unwrap();
    assert_eq!(place.ask("ann", "who").await, "ann's");
    until("as many as wanted", || sandboxes(&place).len() == 3).await;
}

#[tokio::test]
async fn a_drain_that_is_taken_back_ends_nothing() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let (control, pool) = control(&place);
    let (mut slow, _) = endless(&place, "bob").await;
    let short = Duration::from_millis(300);
    control.drain(&pool, short).await.unwrap();
    control.undrain(&pool).await.unwrap();
    // Far beyond the deadline: fifty texts a second.
    for _ in 0..50 {
        first_text(&mut slow).await;
    }
    assert_eq!(place.ask("ann", "echo 1").await, "1");
    // A reload takes one back, too.
    control.drain(&pool, short).await.unwrap();
    control.reload(&pool).await.unwrap();
    for _ in 0..50 {
        first_text(&mut slow).await;
    }
    assert_eq!(place.ask("ann", "echo 1").await, "1");
}
