//! One behaviour each.

use super::*;

fn asked(owner: &str) -> Asked {
    Asked {
        dialect: Dialect::Messages,
        priority: Priority::Interactive,
        owner: owner.into(),
        model: Some("m".into()),
        correlation_id: HeaderValue::from_static("c-1"),
        arrived: Instant::now(),
    }
}

fn list<'r>(recent: &'r Recent, owner: &str) -> Listed<'r> {
    recent.list(asked(owner), None, Waker::noop().clone())
}

/// As whoever has the slot ends it.
fn complete(listed: Listed<'_>) {
    let (recent, seen) = (listed.recent, listed.seen());
    listed.answered();
    recent.end(seen, state_of(Outcome::Completed), Duration::ZERO);
}

fn states(recent: &Recent) -> Vec<(u64, TaskState)> {
    let number = |shown: &Shown| {
        let id = shown.view.task_id.as_str();
        id.rsplit('-').next().unwrap().parse().unwrap()
    };
    let all = recent.newest(10_000, u64::MAX, |_, _| true);
    let mut all: Vec<(u64, TaskState)> = all
        .iter()
        .map(|shown| (number(shown), shown.view.state))
        .collect();
    all.sort_by_key(|(number, _)| *number);
    all
}

#[test]
fn a_request_is_shown_from_its_beginning_to_after_its_end() {
    let recent = Recent::new(Instant::now(), 1_700_000_000_000);
    let waits = list(&recent, "alice");
    let late = list(&recent, "bob");
    let view = recent
        .newest(9, u64::MAX, |owner, _| owner == "alice")
        .pop()
        .unwrap()
        .view;
    assert_eq!(recent.find(&view.task_id).as_ref(), Some(&view));
    assert_eq!(
        (view.state, view.dialect),
        (TaskState::Queued, Some(Dialect::Messages))
    );
    assert_eq!(
        (view.model.as_deref(), view.correlation_id.as_str()),
        (Some("m"), "c-1")
    );
    assert_eq!(view.ended_at, None);

    recent.running(waits.seen());
    late.failed(&ApiError::new(ErrorCode::DeadlineUnmet, "late"));
    assert_eq!(
        states(&recent),
        [(1, TaskState::Running), (2, TaskState::Expired)]
    );
    let seen = waits.seen();
    waits.answered();
    assert_eq!(
        states(&recent)[0].1,
        TaskState::Running,
        "whoever has the slot ends it"
    );
    recent.end(seen, TaskState::Completed, Duration::from_millis(20));
    recent.end(seen, TaskState::Failed, Duration::from_millis(8));
    let ended = recent.find(&view.task_id).unwrap();
    assert_eq!(ended.state, TaskState::Completed, "it ends once");
    assert_eq!(ended.ended_at.as_deref(), Some("2023-11-14T22:13:20.020Z"));

    drop(list(&recent, "carol"));
    assert_eq!(states(&recent)[2].1, TaskState::Cancelled, "its client has gone");
    let other = Recent::new(Instant::now(), 1);
    assert_eq!(other.find(&view.task_id), None, "another process's request");
}

#[test]
fn a_cancel_ends_the_work_of_the_request_that_it_names_and_of_no_other() {
    let recent = Recent::new(Instant::now(), 0);
    let (named, other) = (list(&recent, "a"), list(&recent, "a"));
    let waits = |seen: Seen| {
        let work = std::future::pending::<Result<(), ApiError>>();
        let mut work = std::pin::pin!(work);
        let mut work = std::pin::pin!(recent.unless_cancelled(seen, work.as_mut()));
        work.as_mut()
            .poll(&mut std::task::Context::from_waker(Waker::noop()))
    };
    assert!(waits(named.seen()).is_pending() && waits(other.seen()).is_pending());
    let id = recent.newest(9, u64::MAX, |_, _| true);
    let id = id
        .iter()
        .find(|shown| shown.view.task_id.as_str().ends_with("-1"))
        .unwrap();
    recent.cancel(&id.view.task_id);
    assert!(waits(other.seen()).is_pending());
    let Poll::Ready(Err(error)) = waits(named.seen()) else {
        panic!("it was not cancelled");
    };
    assert_eq!(error.code, ErrorCode::Cancelled);
    named.failed(&error);
    complete(other);
    recent.cancel(&id.view.task_id);
    assert_eq!(
        states(&recent),
        [(1, TaskState::Cancelled), (2, TaskState::Completed)]
    );
}

#[test]
fn an_old_name_changes_nothing_and_the_list_is_bounded() {
    let recent = Recent::new(Instant::now(), 0);
    let first = list(&recent, "a");
    let old = first.seen();
    complete(first);
    let second = list(&recent, "a");
    assert_eq!(second.seen().slot, old.slot, "the place is used again");
    recent.running(old);
    recent.end(old, TaskState::Failed, Duration::ZERO);
    assert_eq!(
        states(&recent),
        [(1, TaskState::Completed), (2, TaskState::Queued)]
    );
    for _ in 0..ENDED_KEPT_MAX + 5 {
        complete(list(&recent, "a"));
    }
    let all = states(&recent);
    assert_eq!(all.len(), ENDED_KEPT_MAX + 1);
    assert_eq!(
        all[0],
        (2, TaskState::Queued),
        "what runs stays, whatever has ended since"
    );
}

#[test]
fn a_page_has_the_newest_and_all_of_their_last_moment() {
    let recent = Recent::new(Instant::now(), 0);
    let epoch = recent.epoch.0;
    let kept: Vec<_> = [5, 5, 9, 3, 5, 7]
        .map(|ms| {
            let arrived = epoch + Duration::from_millis(ms);
            recent.list(
                Asked {
                    arrived,
                    ..asked("a")
                },
                None,
                Waker::noop().clone(),
            )
        })
        .into();
    let page = |limit, before_ms| -> Vec<u64> {
        let page = recent.newest(limit, before_ms, |_, _| true);
        page.iter().map(|shown| shown.created_ms).collect()
    };
    assert_eq!(page(2, u64::MAX), [9, 7]);
    assert_eq!(page(3, u64::MAX), [9, 7, 5, 5, 5]);
    assert_eq!(page(1, 7), [7, 5, 5, 5]);
    assert_eq!(
        page(1, 5),
        [5, 5, 5, 3],
        "those before it, besides all of its moment"
    );
    drop(kept);
}

#[test]
fn a_burst_leaves_no_room_behind() {
    let recent = Recent::new(Instant::now(), 0);
    let burst: Vec<_> = (0..SLOTS_KEPT * 2).map(|_| list(&recent, "a")).collect();
    drop(burst);
    let lane = recent.lane(own_lane());
    assert_eq!((lane.running.len(), lane.free.len()), (0, 0));
}
