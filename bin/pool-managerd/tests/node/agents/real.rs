//! Real CLIs from npm, as their profiles install them, against a scripted provider.

use std::time::{Duration, Instant};

use fake_provider::Step;
use pool_registry_types::{AgentEvent, AgentOutcome, AgentRun, WarmLevel};

use super::place::{Place, Told, told};

fn completed(told: &Told) {
    assert_eq!(told.outcome(), &AgentOutcome::Completed, "{:?}", told.events);
}

fn code(told: &Told) -> &str {
    match told.outcome() {
        AgentOutcome::Failed { code, .. } => code,
        AgentOutcome::Completed => "completed",
        AgentOutcome::Cancelled => "cancelled",
    }
}

fn in_session(mut asked: AgentRun, name: &str) -> AgentRun {
    asked.session_id = Some(name.to_owned());
    asked
}

/// All that the provider was told of conversations since the last look.
fn heard(place: &Place) -> String {
    format!("{:?}", place.provider.take_seen())
}

async fn conversations_are_kept_apart(agent: &str) {
    let Some(place) = Place::real(agent).await else {
        return;
    };
    let first = place.run(place.asked("ann", "the word is walnut")).await;
    completed(&first);
    assert_eq!(first.text(), "201");
    assert_ne!(first.level(), WarmLevel::Hot);
    assert!(heard(&place).contains("walnut"));
    // The same process, and nothing of before in it.
    let second = place
        .run(in_session(place.asked("ann", "which word?"), "one"))
        .await;
    completed(&second);
    assert_eq!(second.level(), WarmLevel::Hot);
    assert!(!heard(&place).contains("walnut"));
    let third = place.run(in_session(place.asked("ann", "go on"), "one")).await;
    completed(&third);
    let seen = heard(&place);
    assert!(seen.contains("which word?") && !seen.contains("walnut"), "{seen}");
    // What nobody named has the CLI's own name.
    let by_its_own_name = first.session().expect("it says its session");
    let back = place
        .run(in_session(place.asked("ann", "and now?"), &by_its_own_name))
        .await;
    completed(&back);
    let seen = heard(&place);
    assert!(seen.contains("walnut") && !seen.contains("go on"), "{seen}");
    // Somebody else's is another sandbox and another process.
    let bobs = place.run(place.asked("bob", "which word?")).await;
    completed(&bobs);
    assert_ne!(bobs.level(), WarmLevel::Hot);
    let seen = heard(&place);
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

    place.provider.script([Step::hang(["began"])]);
    let mut asked = place.asked("ann", "wait");
    asked.timeout_ms = Some(1500);
    let late = place.run(asked).await;
    assert_eq!(
        (code(&late), late.text().as_str()),
        ("DECODE_TIMEOUT", "began"),
        "{:?}",
        late.events
    );
    assert!(late.took < Duration::from_secs(10), "{:?}", late.took);
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
async fn gemini_keeps_running() {
    let Some(place) = Place::real("gemini").await else {
        return;
    };
    completed(&place.run(place.asked("ann", "the word is walnut")).await);
    assert!(heard(&place).contains("walnut"));
    let second = place.run(place.asked("ann", "which word?")).await;
    completed(&second);
    assert_eq!((second.level(), second.text().as_str()), (WarmLevel::Hot, "201"));
    assert!(!heard(&place).contains("walnut"));
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
