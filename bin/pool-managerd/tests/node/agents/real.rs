//! Real CLIs from npm, as their profiles install them, against a scripted provider.

use std::time::{Duration, Instant};

use fake_provider::Step;
use pool_registry_types::{AgentEvent, AgentOutcome, AgentRun, WarmLevel};

use super::place::{Place, Told, told};

fn completed(told: &Told) {
    assert_eq!(told.outcome(), &AgentOutcome::Completed, "{:?}", told.events);
}

fn in_session(mut asked: AgentRun, name: &str) -> AgentRun {
    asked.session_id = Some(name.to_owned());
    asked
}

/// A run that succeeds, and all that the provider was told of conversations meanwhile: with this run's key and no other.
async fn heard(place: &Place, asked: AgentRun) -> (Told, String) {
    let key = asked.local_model.as_ref().map(|local| local.key.clone());
    let told = place.run(asked).await;
    completed(&told);
    let seen = place.provider.take_seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|seen| seen.key == key),
        "{seen:?}"
    );
    (told, format!("{seen:?}"))
}

async fn conversations_are_kept_apart(agent: &str) {
    let Some(place) = Place::real(agent).await else {
        return;
    };
    let (first, seen) = heard(&place, place.asked("ann", "the word is walnut")).await;
    assert_eq!(first.text(), "201");
    assert_ne!(first.level(), WarmLevel::Hot);
    assert!(seen.contains("walnut"));
    // The same process, and nothing of before in it.
    let (second, seen) = heard(&place, in_session(place.asked("ann", "which word?"), "one")).await;
    assert_eq!((second.level(), second.text().as_str()), (WarmLevel::Hot, "201"));
    assert!(!seen.contains("walnut"));
    let (third, seen) = heard(&place, in_session(place.asked("ann", "go on"), "one")).await;
    assert_eq!(third.level(), WarmLevel::Hot);
    assert!(seen.contains("which word?") && !seen.contains("walnut"), "{seen}");
    // What nobody named has the CLI's own name.
    let by_its_own_name = first.session().expect("it says its session");
    let (back, seen) = heard(
        &place,
        in_session(place.asked("ann", "and now?"), &by_its_own_name),
    )
    .await;
    assert_eq!(back.text(), "201", "{:?}", back.events);
    assert!(seen.contains("walnut") && !seen.contains("go on"), "{seen}");
    // Somebody else's is another sandbox and another process.
    let (bobs, seen) = heard(&place, place.asked("bob", "which word?")).await;
    assert_ne!(bobs.level(), WarmLevel::Hot);
    assert!(!seen.contains("walnut") && !seen.contains("go on"), "{seen}");
}

async fn turns_are_ended_early(agent: &str) {
    let Some(place) = Place::real(agent).await else {
        return;
    };
    completed(&place.run(place.asked("ann", "3*67")).await);
    place.provider.script([Step::hang(["began"])]);
    let mut hanging = place.begin(place.asked("ann", "wait")).await.unwrap();
    while !matches!(hanging.next().await, Some(AgentEvent::Text { .. })) {}
    drop(hanging);
    place.bench.free(agent, 4).await;
    let after = place.run(place.asked("ann", "3*67")).await;
    completed(&after);
    assert_eq!((after.level(), after.text().as_str()), (WarmLevel::Hot, "201"));

    place.provider.script(vec![Step::hang(["began"]); 3]);
    let late = place.run_until_late(&place.asked("ann", "wait")).await;
    assert_eq!(late.text(), "began", "{:?}", late.events);
}

/// Prints what a turn takes.
async fn figures(agent: &str) {
    let Some(place) = Place::real(agent).await else {
        return;
    };
    let mut kept = Vec::new();
    let mut new = Vec::new();
    // The next one finds a warm sandbox.
    completed(&place.run(place.asked("zoe", "3*67")).await);
    let cold = place.run(in_session(place.asked("ann", "3*67"), "one")).await;
    completed(&cold);
    for _ in 0..10 {
        let begun = Instant::now();
        let events = place
            .begin(in_session(place.asked("ann", "3*67"), "one"))
            .await
            .unwrap();
        kept.push(told(begun, events).await);
        completed(kept.last().unwrap());
    }
    for _ in 0..10 {
        new.push(place.run(place.asked("ann", "3*67")).await);
        completed(new.last().unwrap());
    }
    let median = |of: &[Told], what: fn(&Told) -> Duration| {
        let mut all: Vec<_> = of.iter().map(what).collect();
        all.sort();
        all[all.len() / 2]
    };
    for (name, of) in [
        ("first", std::slice::from_ref(&cold)),
        ("hot, same session", &kept),
        ("hot, new one", &new),
    ] {
        eprintln!(
            "{agent}, {name}: prompted {:?}, text {:?}, end {:?}",
            median(of, |told| told.prompted.unwrap()),
            median(of, |told| told.text_at.unwrap()),
            median(of, |told| told.took)
        );
    }
}

#[tokio::test]
async fn claude_code_keeps_conversations_apart() {
    conversations_are_kept_apart("claude").await;
}

#[tokio::test]
async fn codex_keeps_conversations_apart() {
    conversations_are_kept_apart("codex").await;
}

#[tokio::test]
async fn gemini_keeps_conversations_apart() {
    conversations_are_kept_apart("gemini").await;
}

#[tokio::test]
async fn opencode_keeps_conversations_apart() {
    conversations_are_kept_apart("opencode").await;
}

#[tokio::test]
async fn claude_code_can_be_ended_early() {
    turns_are_ended_early("claude").await;
}

#[tokio::test]
async fn codex_can_be_ended_early() {
    turns_are_ended_early("codex").await;
}

#[tokio::test]
async fn claude_code_figures() {
    figures("claude").await;
}

#[tokio::test]
async fn codex_figures() {
    figures("codex").await;
}
