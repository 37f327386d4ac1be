//! Runs of an agent that does what its prompt says.

use std::time::{Duration, Instant};

use pool_managerd::DoorError;
use pool_registry_types::{AgentEffort, AgentEvent, AgentOutcome, RunWorkspace, WarmLevel};

use super::place::{Place, told};

fn code(outcome: &AgentOutcome) -> &str {
    match outcome {
        AgentOutcome::Failed { code, .. } => code,
        AgentOutcome::Completed => "completed",
        AgentOutcome::Cancelled => "cancelled",
    }
}

#[tokio::test]
async fn a_second_run_is_hot_and_a_new_conversation_is_empty() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let first = place.run(place.plain("ann", "echo walnut")).await;
    assert_eq!(
        (code(first.outcome()), first.text().as_str()),
        ("completed", "walnut")
    );
    assert_ne!(first.level(), WarmLevel::Hot);
    let second = place.run(place.plain("ann", "history")).await;
    assert_eq!(
        (second.level(), second.text().as_str()),
        (WarmLevel::Hot, "history")
    );
}

#[tokio::test]
async fn a_session_goes_on_where_it_was_and_others_do_not_see_it() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let in_session = |session: &str, prompt: &str| {
        let mut asked = place.plain("ann", prompt);
        asked.session_id = Some(session.to_owned());
        asked
    };
    assert_eq!(place.run(in_session("one", "echo 1")).await.text(), "1");
    let again = place.run(in_session("one", "history")).await;
    assert_eq!(
        (again.level(), again.text().as_str()),
        (WarmLevel::Hot, "echo 1|history")
    );
    assert_eq!(place.run(in_session("two", "history")).await.text(), "history");
    // The first one's CLI has been given another conversation since: it is continued by a new process.
    assert_eq!(
        place.run(in_session("one", "history")).await.text(),
        "resumed|history"
    );
}

#[tokio::test]
async fn two_owners_share_nothing() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let claimed = |told: &super::place::Told| {
        told.events.iter().find_map(|event| match event {
            AgentEvent::Claimed { sandbox_id, .. } => Some(sandbox_id.clone()),
            _ => None,
        })
    };
    assert_eq!(place.ask("ann", "login ann's").await, "logged in");
    assert_eq!(place.ask("ann", "drop in-tmp").await, "dropped");
    let anns = place.run(place.plain("ann", "found")).await;
    assert_eq!(anns.text(), "in-tmp");
    let bobs = place.run(place.plain("bob", "found")).await;
    assert_eq!(bobs.text(), "nothing");
    assert_ne!(claimed(&anns), claimed(&bobs));
    assert_eq!(place.ask("bob", "who").await, "nobody");
    assert_eq!(place.ask("bob", "history").await, "history");
    assert_eq!(place.ask("ann", "who").await, "ann's");
}

#[tokio::test]
async fn an_owners_runs_at_once_are_in_one_sandbox() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let mut slow = place.begin(place.plain("ann", "slow")).await.unwrap();
    while !matches!(slow.next().await, Some(AgentEvent::Text { .. })) {}
    let other = place.run(place.plain("ann", "echo beside")).await;
    assert_eq!(
        (other.level(), other.text().as_str()),
        (WarmLevel::Warm, "beside")
    );
    place.bench.free("fake", 7).await;
    drop(slow);
    place.bench.free("fake", 8).await;
}

#[tokio::test]
async fn a_dropped_run_is_interrupted_and_the_cli_goes_on() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let pid = place.ask("ann", "pid").await;
    let mut slow = place.begin(place.plain("ann", "slow")).await.unwrap();
    while !matches!(slow.next().await, Some(AgentEvent::Text { .. })) {}
    drop(slow);
    place.bench.free("fake", 8).await;
    let after = place.run(place.plain("ann", "pid")).await;
    assert_eq!((after.level(), after.text()), (WarmLevel::Hot, pid));
}

#[tokio::test]
async fn a_cli_that_hears_no_interrupt_is_killed() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let pid = place.ask("ann", "pid").await;
    let mut deaf = place.begin(place.plain("ann", "deaf")).await.unwrap();
    while !matches!(deaf.next().await, Some(AgentEvent::Text { .. })) {}
    drop(deaf);
    place.bench.free("fake", 8).await;
    assert_ne!(place.ask("ann", "pid").await, pid);
}

#[tokio::test]
async fn a_turn_that_takes_too_long_keeps_what_came() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let late = place.run_until_late(&place.plain("ann", "slow")).await;
    assert!(late.text().starts_with('.'), "{:?}", late.events);
    assert_eq!(place.ask("ann", "history").await, "history");
}

#[tokio::test]
async fn what_goes_wrong_ends_the_run_and_not_the_pool() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let exited = place.run(place.plain("ann", "exit 3")).await;
    assert_eq!(code(exited.outcome()), "WORKER_RESET", "{:?}", exited.events);
    assert_eq!(place.ask("ann", "echo still here").await, "still here");
    let mut asked = place.plain("ann", "x");
    for id in ["../up", "0123456789abcdef0123456789abcdef"] {
        asked.workspace = Some(RunWorkspace::Kept { id: id.to_owned() });
        let refused = place.run(asked.clone()).await;
        assert_eq!(code(refused.outcome()), "NOT_FOUND", "{:?}", refused.events);
    }
    place.bench.free("fake", 8).await;
}

#[tokio::test]
async fn slots_are_granted_and_given_back() {
    let Some(place) = Place::fake(|pool| pool.runs_max = Some(1)).await else {
        return;
    };
    let mut slow = place.begin(place.plain("ann", "slow")).await.unwrap();
    let second = place.begin(place.plain("bob", "echo 1")).await.map(|_| ());
    assert!(matches!(second, Err(DoorError::SlotsTaken)), "{second:?}");
    while !matches!(slow.next().await, Some(AgentEvent::Text { .. })) {}
    drop(slow);
    place.bench.free("fake", 1).await;
    assert_eq!(place.ask("bob", "echo 1").await, "1");
}

#[tokio::test]
async fn a_megabyte_comes_whole_and_in_order() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let begun = Instant::now();
    let events = place.begin(place.plain("ann", "flood 1000")).await.unwrap();
    // A reader that is slow at first: the agent waits for it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let flood = told(begun, events).await;
    let expect: String = (0..1000)
        .map(|at| format!("{};", (at % 10).to_string().repeat(1000)))
        .collect();
    assert_eq!(flood.text().len(), expect.len());
    assert!(flood.text() == expect, "text was lost or reordered");
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_told() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let run = place
        .run(place.plain("ann", "get http://metadata.example/latest"))
        .await;
    assert_eq!(run.text(), "403");
    let denied = run.events.iter().any(|event| {
        matches!(event, AgentEvent::EgressDenied { host, port: 80, .. } if host == "metadata.example")
    });
    assert!(denied, "{:?}", run.events);
}

#[tokio::test]
async fn another_effort_starts_a_cli_of_its_own() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let pid = place.ask("ann", "pid").await;
    let mut asked = place.plain("ann", "pid");
    asked.effort = Some(AgentEffort::High);
    let high = place.run(asked.clone()).await;
    assert_ne!(high.text(), pid);
    assert_eq!(place.run(asked).await.text(), high.text());
}

#[tokio::test]
async fn a_node_that_ends_ends_its_runs_and_leaves_no_sandbox() {
    let Some(mut place) = Place::fake(|_| {}).await else {
        return;
    };
    assert_eq!(place.ask("bob", "login bobs").await, "logged in");
    let mut slow = place.begin(place.plain("ann", "slow")).await.unwrap();
    while !matches!(slow.next().await, Some(AgentEvent::Text { .. })) {}
    let node = place.bench.node.take().unwrap();
    let reading = tokio::spawn(told(Instant::now(), slow));
    assert_eq!(
        node.shutdown(Duration::from_millis(300), true).await,
        1,
        "one run was left"
    );
    assert_eq!(code(reading.await.unwrap().outcome()), "WORKER_RESET");
    let records = std::fs::read_dir(place.records()).unwrap().flatten();
    let left: Vec<_> = records
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().ends_with(".json"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_second_node_does_not_take_the_first_ones_sandboxes() {
    let Some(place) = Place::fake(|_| {}).await else {
        return;
    };
    let pid = place.ask("ann", "pid").await;
    let second = place.another_node().map(|_| ()).unwrap_err().to_string();
    assert!(second.contains("agent pools cannot be kept"), "{second}");
    let again = place.run(place.plain("ann", "pid")).await;
    assert_eq!((again.level(), again.text()), (WarmLevel::Hot, pid));
}
