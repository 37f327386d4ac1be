//! Histories of one engine.

use proptest::prelude::*;

use super::*;

fn second(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn failed(text: &str) -> Event {
    Event::Exited(text.to_owned())
}

/// A life that has come to `Ready`.
fn ready(now: Instant) -> Life {
    let (mut life, effects) = Life::new(Policy::default(), 7);
    assert_eq!(effects, [Effect::Fetch]);
    assert_eq!(life.step(now, Event::Fetched), [Effect::Start]);
    assert_eq!(life.phase(), Phase::Starting);
    assert_eq!(life.step(now, Event::Answered), [Effect::WriteHandoff]);
    assert_eq!(life.phase(), Phase::Ready);
    life
}

#[test]
fn an_engine_that_ends_is_started_again_after_a_pause() {
    let now = Instant::now();
    let mut life = ready(now);
    assert_eq!(life.step(now, failed("killed")), [Effect::RemoveHandoff]);
    assert_eq!(life.phase(), Phase::BackingOff);
    assert_eq!(life.last_error(), Some("killed"));
    let until = life.wake_at().unwrap();
    assert!(
        until >= now + Duration::from_millis(375) && until <= now + Duration::from_millis(625),
        "{until:?}"
    );
    assert_eq!(life.step(until - Duration::from_millis(1), Event::Tick), []);
    assert_eq!(life.step(until, Event::Tick), [Effect::Fetch]);
    assert_eq!(life.step(until, Event::Fetched), [Effect::Start]);
    assert_eq!(life.step(until, Event::Answered), [Effect::WriteHandoff]);
    assert_eq!(life.last_error(), None);
    assert_eq!(life.failures(), 1);
}

#[test]
fn pauses_double_until_the_budget_is_used_up_and_the_budget_comes_back() {
    let mut now = Instant::now();
    let mut life = ready(now);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let _ = life.step(now, failed("crash"));
        let until = life.wake_at().unwrap();
        pauses.push(until.duration_since(now).as_secs_f64());
        now = until;
        assert_eq!(life.step(now, Event::Tick), [Effect::Fetch]);
        assert_eq!(life.step(now, Event::Fetched), [Effect::Start]);
    }
    for (pause, expect) in pauses.iter().zip([0.5, 1.0, 2.0, 4.0, 8.0, 60.0, 60.0, 60.0]) {
        assert!((expect * 0.75..=expect * 1.25).contains(pause), "{pauses:?}");
    }
    let _ = life.step(now, failed("crash"));
    assert_eq!(
        life.last_error(),
        Some("crash (more than 5 failures in 600 s: tried every 60 s only)")
    );
    now = life.wake_at().unwrap();
    let _ = life.step(now, Event::Tick);
    let _ = life.step(now, Event::Fetched);
    now += second(700);
    assert_eq!(life.step(now, Event::Answered), [Effect::WriteHandoff]);
    let _ = life.step(now, failed("crash"));
    assert!(
        life.wake_at().unwrap() <= now + second(1),
        "old failures count no longer"
    );
}

#[test]
fn one_that_never_answers_is_ended_and_reaped_before_the_next_is_started() {
    let now = Instant::now();
    let (mut life, _) = Life::new(Policy::default(), 7);
    let _ = life.step(now, Event::Fetched);
    assert_eq!(life.step(now, Event::Unanswered("503".to_owned())), []);
    let late = now + second(900);
    assert_eq!(life.step(late, Event::Tick), [Effect::Terminate]);
    assert_eq!(life.phase(), Phase::Stopping);
    assert_eq!(life.step(late + second(4), Event::Tick), []);
    assert_eq!(life.step(late + second(5), Event::Tick), [Effect::Kill]);
    assert_eq!(life.step(late + second(6), Event::Tick), [Effect::Kill]);
    assert_eq!(life.step(late + second(6), failed("was ended by signal 9")), []);
    assert_eq!(life.phase(), Phase::BackingOff);
    let error = life.last_error().unwrap();
    assert!(
        error.starts_with("the engine did not answer within 900 s"),
        "{error}"
    );
}

#[test]
fn one_that_hangs_is_ended_and_one_that_was_only_slow_is_not() {
    let now = Instant::now();
    let mut life = ready(now);
    let silent = || Event::Unanswered("timed out".to_owned());
    assert_eq!(life.step(now, silent()), []);
    assert_eq!(life.step(now + second(59), silent()), []);
    assert_eq!(life.step(now + second(59), Event::Answered), []);
    assert_eq!(life.step(now + second(100), silent()), []);
    assert_eq!(
        life.step(now + second(160), silent()),
        [Effect::RemoveHandoff, Effect::Terminate]
    );
    assert_eq!(life.step(now + second(161), failed("ended")), []);
    assert_eq!(
        life.last_error(),
        Some("the engine has not answered for 60 s: timed out")
    );
}

#[test]
fn a_stop_ends_what_there_is_and_nothing_follows() {
    let now = Instant::now();
    let (mut fetching, _) = Life::new(Policy::default(), 7);
    assert_eq!(fetching.step(now, Event::Stop), [Effect::CancelFetch]);
    assert_eq!(fetching.phase(), Phase::Stopped);
    assert_eq!(fetching.step(now, Event::Fetched), []);

    let mut life = ready(now);
    assert_eq!(
        life.step(now, Event::Stop),
        [Effect::RemoveHandoff, Effect::Terminate]
    );
    assert_eq!(life.step(now, Event::Stop), []);
    assert_eq!(life.step(now + second(5), Event::Tick), [Effect::Kill]);
    assert_eq!(life.step(now + second(5), failed("killed")), []);
    assert_eq!(life.phase(), Phase::Stopped);
    assert_eq!(life.wake_at(), None);

    let mut pausing = ready(now);
    let _ = pausing.step(now, failed("crash"));
    assert_eq!(pausing.step(now, Event::Stop), []);
    assert_eq!(pausing.phase(), Phase::Stopped);
}

fn events() -> impl Strategy<Value = (u64, Event)> {
    let event = prop_oneof![
        1 => Just(Event::Fetched),
        1 => Just(Event::FetchFailed("fetch".to_owned())),
        1 => Just(Event::StartFailed("start".to_owned())),
        4 => Just(Event::Answered),
        1 => Just(Event::Unanswered("silent".to_owned())),
        2 => Just(failed("exit")),
        4 => Just(Event::Tick),
        1 => Just(Event::Stop),
    ];
    (0_u64..100, event)
}

proptest! {
    /// Whatever happens in whatever order: one process at a time, a handoff only while it answers, and an end to it all.
    #[test]
    fn histories_keep_the_invariants(history in prop::collection::vec(events(), 0..200)) {
        let mut now = Instant::now();
        let (mut life, _) = Life::new(Policy::default(), 3);
        let (mut process, mut handoff, mut fetching) = (false, false, true);
        let mut apply = |life: &mut Life, now, event: Event| {
            // Only what can happen: no end without a process, no news of a fetch that does not run.
            match &event {
                Event::Exited(_) | Event::Answered | Event::Unanswered(_) if !process => return,
                Event::Fetched | Event::FetchFailed(_) if !fetching => return,
                Event::StartFailed(_) if !process || life.phase() != Phase::Starting => return,
                Event::Exited(_) | Event::StartFailed(_) => process = false,
                Event::Fetched | Event::FetchFailed(_) => fetching = false,
                _ => {}
            }
            for effect in life.step(now, event) {
                match effect {
                    Effect::Fetch => { assert!(!process && !fetching); fetching = true; }
                    Effect::CancelFetch => fetching = false,
                    Effect::Start => { assert!(!process); process = true; }
                    Effect::WriteHandoff => { assert!(process && !handoff); handoff = true; }
                    Effect::RemoveHandoff => { assert!(handoff); handoff = false; }
                    Effect::Terminate | Effect::Kill => assert!(process && !handoff),
                }
            }
            assert_eq!(handoff, life.phase() == Phase::Ready);
            assert_eq!(process, matches!(life.phase(), Phase::Starting | Phase::Ready | Phase::Stopping));
            assert_eq!(fetching, life.phase() == Phase::Fetching);
            assert!(life.failed_at.len() <= Policy::default().budget + 1);
        };
        for (seconds, event) in history {
            now += second(seconds);
            apply(&mut life, now, event);
        }
        apply(&mut life, now, Event::Stop);
        apply(&mut life, now, failed("exit"));
        prop_assert_eq!(life.phase(), Phase::Stopped);
    }
}
