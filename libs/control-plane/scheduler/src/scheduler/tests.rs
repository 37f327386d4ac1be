//! One behaviour each. What went wrong for others has a test here.

use pool_registry_types::{Dialect, NodeId, ReplicaState};
use task_api::{ErrorCode, PlacementMode, PlacementRequest, Priority};

use crate::testing::{Bench, model, ms, place_of, pool, replica, slots};
use crate::{
    Admission, AdmissionPolicy, DialectSet, Effect, Outcome, Reason, Refusal, Settings, StaleLease, Target,
    TaskSpec,
};

fn small_queue(policy: AdmissionPolicy) -> Bench {
    Bench::new(Settings {
        queue_capacity: 2,
        policy,
        ..Settings::default()
    })
}

#[test]
fn tasks_spread_over_replicas_by_free_share() {
    let mut bench = Bench::new(Settings::default());
    bench.up(slots(replica("n1", "p", "r0", "m"), 4));
    bench.up(slots(replica("n2", "p", "r0", "m"), 2));
    let places: Vec<String> = (0..6).map(|_| place_of(&bench.placed(&model("m")))).collect();
    assert_eq!(
        places,
        ["p/r0/n1", "p/r0/n2", "p/r0/n1", "p/r0/n1", "p/r0/n2", "p/r0/n1"]
    );
    bench.queued(&model("m"));
}

#[test]
fn equal_load_goes_by_memory_then_pool_then_replica() {
    let mut bench = Bench::new(Settings::default());
    let mut roomy = replica("n1", "z", "r9", "m");
    roomy.status.vram_free_bytes = 1;
    for update in [
        roomy,
        replica("n1", "b", "r1", "m"),
        replica("n1", "b", "r0", "m"),
        replica("n1", "a", "r2", "m"),
    ] {
        bench.up(update);
    }
    let places: Vec<String> = (0..4).map(|_| place_of(&bench.placed(&model("m")))).collect();
    assert_eq!(places, ["z/r9/n1", "a/r2/n1", "b/r0/n1", "b/r1/n1"]);
}

#[test]
fn waiting_tasks_get_slots_in_order_interactive_first() {
    let mut bench = Bench::new(Settings::default());
    bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let mut running = bench.placed(&model("m"));
    let batch = TaskSpec {
        priority: Priority::Batch,
        ..model("m")
    };
    let order = [(&batch, 2), (&model("m"), 0), (&batch, 3), (&model("m"), 1)]
        .map(|(spec, place)| (place, bench.queued(spec)));
    let mut expect = order.to_vec();
    expect.sort();
    for (_, task) in expect {
        bench.release(running.lease);
        running = bench.one_placed();
        assert_eq!(running.lease.task(), task);
        assert_eq!(running.reasons.iter().collect::<Vec<_>>(), [Reason::FirstFree]);
    }
}

#[test]
fn a_task_that_names_its_node_waits_for_it() {
    let mut bench = Bench::new(Settings::default());
    for node in ["n1", "n2"] {
        bench.up(slots(replica(node, "a", "r0", "m"), 1));
    }
    let only = |node: &str| PlacementRequest {
        nodes: vec![NodeId::new(node).unwrap()],
        ..PlacementRequest::default()
    };
    let (second, nowhere) = (only("n2"), only("n3"));
    let on_second = TaskSpec {
        placement: Some(&second),
        ..model("m")
    };
    let placed = bench.placed(&on_second);
    assert_eq!(place_of(&placed), "a/r0/n2");
    let waits = bench.queued(&on_second);
    assert_eq!(place_of(&bench.placed(&model("m"))), "a/r0/n1");
    bench.release(placed.lease);
    let next = bench.one_placed();
    assert_eq!((next.lease.task(), &*place_of(&next)), (waits, "a/r0/n2"));
    bench.queued(&TaskSpec {
        placement: Some(&nowhere),
        ..model("m")
    });
}

#[test]
fn a_head_that_is_pinned_elsewhere_blocks_nobody() {
    let mut bench = Bench::new(Settings::default());
    bench.up(slots(replica("n1", "a", "r0", "m"), 1));
    bench.up(slots(replica("n1", "b", "r0", "m"), 1));
    let (on_a, _on_b) = (bench.placed(&model("m")), bench.placed(&model("m")));
    let pin = PlacementRequest {
        mode: PlacementMode::Pin,
        pools: vec![pool("b")],
        avoid: vec![],
        nodes: vec![],
    };
    let pinned = bench.queued(&TaskSpec {
        placement: Some(&pin),
        ..model("m")
    });
    let free = bench.queued(&model("m"));
    bench.release(on_a.lease);
    assert_eq!(bench.one_placed().lease.task(), free);
    assert_eq!(bench.scheduler.task(pinned).unwrap().waiting.unwrap().position, 0);
}

#[test]
fn a_task_waits_for_any_pool_that_serves_its_model() {
    let mut bench = Bench::new(Settings {
        queue_capacity: 1,
        ..Settings::default()
    });
    bench.up(slots(replica("n1", "a", "r0", "m"), 1));
    bench.up(slots(replica("n1", "b", "r0", "m"), 1));
    let (_on_a, on_b) = (bench.placed(&model("m")), bench.placed(&model("m")));
    let first = bench.queued(&model("m"));
    let _second = bench.queued(&model("m"));
    assert!(
        matches!(bench.submit(&model("m")), Err(Refusal::QueueFull { .. })),
        "both queues hold one"
    );
    bench.release(on_b.lease);
    let placement = bench.one_placed();
    assert_eq!(
        (placement.lease.task(), place_of(&placement).as_str()),
        (first, "b/r0/n1")
    );
}

#[test]
fn a_full_queue_rejects_with_a_computed_time() {
    let mut bench = small_queue(AdmissionPolicy::Reject);
    bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let first = bench.placed(&model("m"));
    bench.now = ms(4_000);
    bench.release(first.lease);
    let _held = bench.placed(&model("m"));
    for _ in 0..2 {
        bench.queued(&model("m"));
    }
    let refusal = bench.submit(&model("m")).unwrap_err();
    assert_eq!(
        refusal,
        Refusal::QueueFull {
            retry_after_ms: 4_000
        }
    );
    assert_eq!(refusal.code(), ErrorCode::AdmissionReject);
    assert!(bench.take().is_empty());
}

#[test]
fn drop_lru_evicts_the_oldest_batch_task_and_tells_it() {
    let mut bench = small_queue(AdmissionPolicy::DropLru);
    bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let _held = bench.placed(&model("m"));
    let batch = TaskSpec {
        priority: Priority::Batch,
        ..model("m")
    };
    let (oldest, younger) = (bench.queued(&batch), bench.queued(&batch));
    bench.queued(&model("m"));
    assert!(matches!(bench.take()[..], [Effect::Ended(task, Refusal::Evicted { .. })] if task == oldest));
    bench.queued(&batch);
    assert!(matches!(bench.take()[..], [Effect::Ended(task, Refusal::Evicted { .. })] if task == younger));
    bench.queued(&model("m"));
    bench.take();
    assert!(
        matches!(bench.submit(&model("m")), Err(Refusal::QueueFull { .. })),
        "interactive tasks are not dropped"
    );
}

#[test]
fn deadlines_are_refused_ahead_and_kept_while_waiting() {
    let mut bench = Bench::new(Settings::default());
    bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let first = bench.placed(&model("m"));
    bench.now = ms(1_000);
    bench.release(first.lease);
    let _held = bench.placed(&model("m"));
    let tight = TaskSpec {
        deadline: Some(ms(1_900)),
        ..model("m")
    };
    assert_eq!(
        bench.submit(&tight).unwrap_err(),
        Refusal::DeadlineUnmet {
            estimated_start_ms: 1_000
        }
    );
    let fair = bench.queued(&TaskSpec {
        deadline: Some(ms(2_100)),
        ..model("m")
    });
    assert_eq!(bench.scheduler.next_due(), Some(ms(2_100)));
    bench.tick(ms(2_099));
    assert!(bench.take().is_empty());
    bench.tick(ms(2_100));
    assert!(matches!(bench.take()[..], [Effect::Ended(task, Refusal::Expired)] if task == fair));
    assert_eq!(bench.submit(&tight).unwrap_err(), Refusal::Expired);
}

#[test]
fn names_that_nobody_serves_are_told_apart() {
    let mut bench = Bench::new(Settings::default());
    assert_eq!(bench.submit(&model("m")).unwrap_err(), Refusal::NoSuchModel);
    bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let nowhere = pool("nowhere");
    assert_eq!(
        bench.submit(&TaskSpec::new(Target::Pool(&nowhere))).unwrap_err(),
        Refusal::NoSuchPool
    );
    let pin = PlacementRequest {
        mode: PlacementMode::Pin,
        pools: vec![nowhere],
        avoid: vec![],
        nodes: vec![],
    };
    assert_eq!(
        bench
            .submit(&TaskSpec {
                placement: Some(&pin),
                ..model("m")
            })
            .unwrap_err(),
        Refusal::NoPoolAllowed
    );
    let embed = TaskSpec {
        dialects: DialectSet::from(Dialect::Embeddings),
        ..model("m")
    };
    assert_eq!(bench.submit(&embed).unwrap_err(), Refusal::DialectUnsupported);
    let chat = TaskSpec {
        dialects: DialectSet::from(Dialect::ChatCompletions),
        ..model("m")
    };
    bench.placed(&chat);
    assert_eq!(
        bench
            .submit(&TaskSpec {
                may_wait: false,
                ..model("m")
            })
            .unwrap_err(),
        Refusal::ReplicaExhausted
    );
}

#[test]
fn every_worker_dead_is_a_wait_and_then_an_answer() {
    let mut bench = Bench::new(Settings::default());
    let only = slots(replica("n1", "p", "r0", "m"), 1);
    bench.up(only.clone());
    bench.now = ms(1_000);
    bench.down(&only);
    assert_eq!(
        bench
            .submit(&TaskSpec {
                may_wait: false,
                ..model("m")
            })
            .unwrap_err(),
        Refusal::PoolUnready
    );
    let lost = bench.queued(&model("m"));
    bench.tick(ms(30_999));
    assert!(bench.take().is_empty());
    bench.tick(ms(31_000));
    assert!(matches!(bench.take()[..], [Effect::Ended(task, Refusal::PoolUnavailable)] if task == lost));
    let kept = bench.queued(&model("m"));
    bench.now = ms(40_000);
    bench.up(only);
    assert_eq!(bench.one_placed().lease.task(), kept);
}

#[test]
fn a_busy_pool_is_waited_for_beyond_the_patience_for_an_unready_one() {
    let mut bench = Bench::new(Settings::default());
    let only = slots(replica("n1", "p", "r0", "m"), 1);
    bench.up(only.clone());
    let _held = bench.placed(&model("m"));
    let waiting = bench.queued(&model("m"));
    bench.tick(ms(45_000));
    assert!(bench.take().is_empty());
    bench.now = ms(50_000);
    bench.down(&only);
    bench.take();
    bench.tick(ms(79_999));
    assert!(
        bench.take().is_empty(),
        "the pool is gone for less than its patience"
    );
    bench.tick(ms(80_000));
    assert!(matches!(bench.take()[..], [Effect::Ended(task, Refusal::PoolUnavailable)] if task == waiting));
}

#[test]
fn a_task_that_has_sent_nothing_starts_over_before_all_that_came_later() {
    let mut bench = Bench::new(Settings::default());
    let dead = bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let first = bench.placed(&model("m"));
    bench.up(slots(replica("n2", "p", "r0", "m"), 1));
    let other = bench.placed(&model("m"));
    let later = bench.queued(&model("m"));
    bench.scheduler.take_out(bench.now, dead, &mut bench.effects);
    let again = bench
        .scheduler
        .requeue(bench.now, first.lease, &mut bench.effects);
    bench.scheduler.check();
    assert!(
        matches!(again, Ok(Admission::Queued(task, waiting)) if task == first.lease.task() && waiting.position == 0)
    );
    bench.release(other.lease);
    let placement = bench.one_placed();
    assert_eq!(
        (placement.lease.task(), place_of(&placement).as_str()),
        (first.lease.task(), "p/r0/n2")
    );
    assert_eq!(
        placement.reasons.iter().last(),
        Some(Reason::StartedOver { before: 1 })
    );
    bench.release(placement.lease);
    assert_eq!(bench.one_placed().lease.task(), later);
}

#[test]
fn a_dead_machine_does_not_use_up_the_attempts() {
    let mut bench = Bench::new(Settings {
        attempts_max: 3,
        ..Settings::default()
    });
    let dead: Vec<_> = (0..8)
        .map(|at| bench.up(slots(replica("dead", "p", &format!("r{at}"), "m"), 8)))
        .collect();
    bench.up(slots(replica("other", "p", "r9", "m"), 2));
    let first = bench.placed(&model("m"));
    assert_eq!(place_of(&first), "p/r0/dead");
    let answer = bench
        .scheduler
        .requeue(bench.now, first.lease, &mut bench.effects);
    bench.scheduler.check();
    assert!(
        matches!(answer, Ok(Admission::Placed(next)) if place_of(&next) == "p/r9/other"),
        "another machine comes first"
    );

    let _fills = bench.placed(&TaskSpec {
        placement: None,
        ..model("m")
    });
    let second = bench.placed(&model("m"));
    assert_eq!(second.info.node_id.as_str(), "dead");
    let last_of_other = loop {
        let placement = bench.placed(&model("m"));
        if placement.info.node_id.as_str() == "other" {
            break placement;
        }
    };
    let answer = bench
        .scheduler
        .requeue(bench.now, second.lease, &mut bench.effects);
    bench.scheduler.check();
    let Ok(Admission::Placed(same_machine)) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(
        same_machine.info.node_id.as_str(),
        "dead",
        "the other machine is full, and only an engine may have died"
    );
    assert_ne!(same_machine.replica, second.replica);

    for replica in dead {
        bench.scheduler.take_out(bench.now, replica, &mut bench.effects);
    }
    let answer = bench
        .scheduler
        .requeue(bench.now, same_machine.lease, &mut bench.effects);
    bench.scheduler.check();
    assert!(
        matches!(answer, Ok(Admission::Queued(..))),
        "nothing of the dead machine is tried: {answer:?}"
    );
    bench.release(last_of_other.lease);
    assert_eq!(bench.one_placed().lease.task(), second.lease.task());
}

#[test]
fn two_answers_are_never_glued_together() {
    let mut bench = Bench::new(Settings::default());
    bench.up(replica("n1", "p", "r0", "m"));
    let placement = bench.placed(&model("m"));
    bench.scheduler.started(bench.now, placement.lease).unwrap();
    let again = bench
        .scheduler
        .requeue(bench.now, placement.lease, &mut bench.effects);
    assert_eq!(again.unwrap_err(), Refusal::AnswerBegun);
    bench.scheduler.check();
    assert!(bench.scheduler.task(placement.lease.task()).is_none());
    assert_eq!(bench.scheduler.pool(&pool("p")).unwrap().slots_free, 4);
}

#[test]
fn starting_over_is_bounded() {
    let mut bench = Bench::new(Settings {
        attempts_max: 3,
        ..Settings::default()
    });
    bench.up(replica("n1", "p", "r0", "m"));
    let mut lease = bench.placed(&model("m")).lease;
    for _ in 0..2 {
        match bench.scheduler.requeue(bench.now, lease, &mut bench.effects) {
            Ok(Admission::Placed(placement)) => lease = placement.lease,
            other => panic!("the only replica is still there: {other:?}"),
        }
        bench.scheduler.check();
    }
    let end = bench.scheduler.requeue(bench.now, lease, &mut bench.effects);
    assert_eq!(end.unwrap_err(), Refusal::AttemptsExhausted { attempts: 3 });
    assert_eq!(bench.scheduler.task_counts(), (0, 0));
}

#[test]
fn a_lease_is_given_back_once() {
    let mut bench = Bench::new(Settings::default());
    bench.up(replica("n1", "p", "r0", "m"));
    let placement = bench.placed(&model("m"));
    bench.release(placement.lease);
    let again = bench
        .scheduler
        .release(bench.now, placement.lease, Outcome::Completed, &mut bench.effects);
    assert_eq!(again, Err(StaleLease));
    let refused = bench
        .scheduler
        .refused(bench.now, placement.lease, &mut bench.effects);
    assert_eq!(refused.unwrap_err(), Refusal::StaleLease);
    assert!(
        !bench
            .scheduler
            .cancel(bench.now, placement.lease.task(), &mut bench.effects)
    );
    bench.scheduler.check();
    assert_eq!(bench.scheduler.pool(&pool("p")).unwrap().slots_free, 4);
}

#[test]
fn a_report_does_not_reset_the_count_of_leases() {
    let mut bench = Bench::new(Settings::default());
    let update = slots(replica("n1", "p", "r0", "m"), 2);
    bench.up(update.clone());
    let _one = bench.placed(&model("m"));
    bench.up(update.clone());
    bench.down(&update);
    bench.up(update.clone());
    let _two = bench.placed(&model("m"));
    bench.queued(&model("m"));
    let smaller = slots(update, 1);
    bench.up(smaller);
    assert_eq!(bench.scheduler.pool(&pool("p")).unwrap().slots_leased, 2);
}

#[test]
fn a_refused_slot_is_left_alone_with_growing_waits() {
    let mut bench = Bench::new(Settings::default());
    let update = slots(replica("n1", "p", "r0", "m"), 2);
    bench.up(update.clone());
    let mut lease = bench.placed(&model("m")).lease;
    for wait in [50, 100, 200, 400, 800, 1_000, 1_000] {
        let answer = bench.scheduler.refused(bench.now, lease, &mut bench.effects);
        assert!(matches!(answer, Ok(Admission::Queued(..))), "{answer:?}");
        let due = bench.now + ms(wait);
        assert_eq!(bench.scheduler.next_due(), Some(due));
        bench.tick(due);
        lease = bench.one_placed().lease;
    }
    let answer = bench.scheduler.refused(bench.now, lease, &mut bench.effects);
    assert!(matches!(answer, Ok(Admission::Queued(..))));
    bench.up(update);
    assert_eq!(
        bench.one_placed().lease.task(),
        lease.task(),
        "a newer report ends the wait"
    );
}

#[test]
fn an_own_task_that_completes_ends_the_wait_after_a_refusal() {
    let mut bench = Bench::new(Settings::default());
    bench.up(slots(replica("n1", "p", "r0", "m"), 2));
    let (held, refused) = (bench.placed(&model("m")), bench.placed(&model("m")));
    let answer = bench
        .scheduler
        .refused(bench.now, refused.lease, &mut bench.effects);
    assert!(matches!(answer, Ok(Admission::Queued(..))));
    bench.release(held.lease);
    assert_eq!(bench.one_placed().lease.task(), refused.lease.task());
}

#[test]
fn impatient_settings_neither_spin_nor_end_what_only_waits_for_its_turn() {
    let zero = ms(0);
    let mut bench = Bench::new(Settings {
        pool_unready_wait: zero,
        probe_min: zero,
        probe_max: zero,
        ..Settings::default()
    });
    let key = bench.up(slots(replica("n1", "p", "r0", "m"), 1));
    let _held = bench.placed(&model("m"));
    let waiting = bench.queued(&model("m"));
    bench.tick(ms(1));
    assert!(bench.take().is_empty());
    bench.scheduler.take_out(bench.now, key, &mut bench.effects);
    bench.tick(ms(20));
    let effects = bench.take();
    assert!(
        effects.iter().any(
            |effect| matches!(effect, Effect::Ended(task, Refusal::PoolUnavailable) if *task == waiting)
        )
    );
    assert!(bench.scheduler.next_due().is_some_and(|due| due > bench.now));
}

#[test]
fn slots_of_other_control_planes_count_for_a_while() {
    let mut bench = Bench::new(Settings::default());
    let mut update = slots(replica("n1", "p", "r0", "m"), 2);
    update.status.others_busy = 2;
    bench.up(update);
    let task = bench.queued(&model("m"));
    bench.tick(ms(999));
    assert!(bench.take().is_empty());
    bench.tick(ms(1_000));
    assert_eq!(
        bench.one_placed().lease.task(),
        task,
        "the node has the last word, so it is asked"
    );
}

#[test]
fn a_replica_that_was_taken_out_is_probed_and_comes_back() {
    let mut bench = Bench::new(Settings::default());
    let key = bench.up(replica("n1", "p", "r0", "m"));
    bench.scheduler.take_out(bench.now, key, &mut bench.effects);
    bench.scheduler.take_out(bench.now, key, &mut bench.effects);
    bench.scheduler.check();
    let task = bench.queued(&model("m"));
    for wait in [200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
        let due = bench.now + ms(wait);
        assert_eq!(bench.scheduler.next_due(), Some(due));
        bench.tick(due);
        assert!(matches!(bench.take()[..], [Effect::Probe(probed, _)] if probed == key));
    }
    bench.scheduler.bring_back(bench.now, key, &mut bench.effects);
    bench.scheduler.check();
    assert_eq!(bench.one_placed().lease.task(), task);
}

#[test]
fn a_report_alone_does_not_bring_back_what_cannot_be_reached() {
    let mut bench = Bench::new(Settings::default());
    let update = replica("n1", "p", "r0", "m");
    let key = bench.up(update.clone());
    bench.scheduler.take_out(bench.now, key, &mut bench.effects);
    bench.up(update.clone());
    bench.queued(&model("m"));
    let mut failed = update.clone();
    failed.status.state = ReplicaState::Failed;
    bench.up(failed);
    assert!(bench.take().is_empty());
    bench.up(update);
    bench.one_placed();
}

#[test]
fn the_leases_of_a_lost_replica_stay_valid() {
    let mut bench = Bench::new(Settings::default());
    let update = replica("n1", "p", "r0", "m");
    bench.up(update.clone());
    let (one, two) = (bench.placed(&model("m")), bench.placed(&model("m")));
    bench.down(&update);
    bench.release(one.lease);
    let again = bench.scheduler.requeue(bench.now, two.lease, &mut bench.effects);
    assert!(matches!(again, Ok(Admission::Queued(..))));
    bench.scheduler.check();
}

#[test]
fn a_drained_pool_finishes_and_gets_nothing_new() {
    let mut bench = Bench::new(Settings::default());
    bench.up(replica("n1", "p", "r0", "m"));
    let held = bench.placed(&model("m"));
    assert!(
        bench
            .scheduler
            .drain_pool(bench.now, &pool("p"), true, &mut bench.effects)
    );
    let waiting = bench.queued(&model("m"));
    bench.release(held.lease);
    assert!(bench.take().is_empty());
    assert!(
        bench
            .scheduler
            .drain_pool(bench.now, &pool("p"), false, &mut bench.effects)
    );
    assert_eq!(bench.one_placed().lease.task(), waiting);
    assert!(
        !bench
            .scheduler
            .drain_pool(bench.now, &pool("q"), true, &mut bench.effects)
    );
}

#[test]
fn sessions_and_prefixes_go_where_they_are_warm_within_the_margin() {
    let mut bench = Bench::new(Settings::default());
    for node in ["n1", "n2", "n3"] {
        bench.up(replica(node, "p", "r0", "m"));
    }
    let session = TaskSpec {
        session: Some(7),
        ..model("m")
    };
    let first = bench.placed(&session);
    let second = bench.placed(&session);
    assert_eq!(place_of(&first), place_of(&second));
    assert_eq!(second.reasons.iter().collect::<Vec<_>>(), [Reason::SessionWarm]);
    let third = bench.placed(&session);
    assert_ne!(
        place_of(&third),
        place_of(&first),
        "half of its slots against none of the others': more than the margin"
    );
    assert_eq!(third.reasons.iter().next(), Some(Reason::WarmTooBusy));

    let long = TaskSpec {
        prefixes: &[3, 2, 1],
        ..model("m")
    };
    let taught = bench.placed(&long);
    let short = TaskSpec {
        prefixes: &[9, 2, 1],
        ..model("m")
    };
    let follower = bench.placed(&short);
    assert_eq!(place_of(&taught), place_of(&follower));
    assert_eq!(
        follower.reasons.iter().collect::<Vec<_>>(),
        [Reason::PrefixWarm { prefix: 1 }]
    );
}

#[test]
fn one_prompt_shared_by_all_does_not_collapse_onto_one_replica() {
    let mut bench = Bench::new(Settings::default());
    for node in 0..8 {
        bench.up(slots(replica(&format!("n{node}"), "p", "r0", "m"), 8));
    }
    let shared = TaskSpec {
        prefixes: &[42],
        ..model("m")
    };
    let held: Vec<_> = (0..32).map(|_| bench.placed(&shared)).collect();
    let loads: Vec<u32> = bench
        .scheduler
        .replicas(None)
        .iter()
        .map(|entry| entry.slots_leased)
        .collect();
    let (most, least) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
    assert!(
        most - least <= 3,
        "half of all slots are taken, spread over all within the margin: {loads:?}"
    );
    for placement in held {
        bench.release(placement.lease);
    }
}

#[test]
fn preferred_pools_come_first_and_others_when_they_are_full() {
    let mut bench = Bench::new(Settings::default());
    bench.up(slots(replica("n1", "a", "r0", "m"), 1));
    bench.up(slots(replica("n1", "b", "r0", "m"), 1));
    bench.up(slots(replica("n1", "c", "r0", "m"), 1));
    let prefer = PlacementRequest {
        mode: PlacementMode::Prefer,
        pools: vec![pool("b")],
        avoid: vec![pool("a")],
        nodes: vec![],
    };
    let spec = TaskSpec {
        placement: Some(&prefer),
        session: Some(1),
        ..model("m")
    };
    let first = bench.placed(&spec);
    assert_eq!(
        (place_of(&first).as_str(), first.reasons.iter().next()),
        ("b/r0/n1", Some(Reason::Preferred))
    );
    let second = bench.placed(&spec);
    assert_eq!(
        (place_of(&second).as_str(), second.reasons.iter().next()),
        ("c/r0/n1", Some(Reason::PreferredFull))
    );
    bench.queued(&spec);
    let words = second.reasons.to_strings();
    assert_eq!(words[0], "the preferred pools had no room");
}

#[test]
fn models_are_listed_while_they_are_really_there() {
    let mut bench = Bench::new(Settings::default());
    let mut update = replica("n1", "p", "r0", "m");
    update.info.models[0].aliases = vec!["alias".to_owned()];
    bench.up(update.clone());
    bench.placed(&model("alias"));
    let names = |bench: &Bench| {
        bench
            .scheduler
            .models()
            .iter()
            .map(|entry| entry.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&bench), ["m"]);
    let mut reloaded = update.clone();
    reloaded.info.models[0].id = "newer".to_owned();
    reloaded.info.models[0].aliases.clear();
    bench.up(reloaded);
    assert_eq!(names(&bench), ["newer"]);
    assert_eq!(
        bench.submit(&model("m")).unwrap_err(),
        Refusal::NoSuchModel,
        "its pool serves another one now"
    );
    bench.down(&update);
    assert!(names(&bench).is_empty());
}

#[test]
fn what_is_gone_for_long_is_forgotten() {
    let mut bench = Bench::new(Settings::default());
    let update = replica("n1", "p", "r0", "m");
    bench.up(update.clone());
    bench.down(&update);
    bench.tick(ms(300_000));
    assert_eq!(bench.scheduler.pools().len(), 1);
    bench.tick(ms(601_000));
    assert!(bench.scheduler.pools().is_empty());
    assert_eq!(bench.submit(&model("m")).unwrap_err(), Refusal::NoSuchModel);
    bench.up(update);
    bench.placed(&model("m"));
}

#[test]
fn a_task_goes_back_to_where_it_failed_when_that_is_all_there_is() {
    let mut bench = Bench::new(Settings::default());
    let (one, two) = (
        slots(replica("n1", "p", "r0", "m"), 1),
        slots(replica("n2", "p", "r0", "m"), 1),
    );
    let dead = bench.up(one);
    let failed = bench.placed(&model("m"));
    bench.up(two.clone());
    let _busy = bench.placed(&model("m"));
    bench.scheduler.take_out(bench.now, dead, &mut bench.effects);
    let again = bench
        .scheduler
        .requeue(bench.now, failed.lease, &mut bench.effects);
    assert!(matches!(again, Ok(Admission::Queued(..))));
    bench.scheduler.bring_back(bench.now, dead, &mut bench.effects);
    bench.scheduler.check();
    assert!(bench.take().is_empty(), "it waits for the other replica");
    bench.down(&two);
    let effects = bench.take();
    let placed = effects.iter().find_map(|effect| match effect {
        Effect::Placed(placement) => Some(placement.lease.task()),
        _ => None,
    });
    assert_eq!(placed, Some(failed.lease.task()));
}

#[test]
fn pictures_go_where_every_replica_of_the_model_takes_them() {
    let mut bench = Bench::new(Settings::default());
    let takes = |node: &str, pool: &str, name: &str, media: bool| {
        let mut update = replica(node, pool, "r0", name);
        update.info.models[0].media = media;
        update
    };
    bench.up(takes("n1", "p", "sees", true));
    bench.up(takes("n1", "q", "blind", false));
    let both = [takes("n1", "x", "mixed", true), takes("n2", "y", "mixed", false)];
    for update in &both {
        bench.up(update.clone());
    }
    let pool = |id: &str| pool_registry_types::PoolId::new(id).unwrap();
    let check = |bench: &Bench, model: Option<&str>, of: Option<&str>, expect: bool| {
        let of = of.map(pool);
        assert_eq!(
            bench.scheduler.takes_media(model, of.as_ref()),
            expect,
            "{model:?} {of:?}"
        );
    };
    check(&bench, Some("sees"), None, true);
    check(&bench, Some("blind"), None, false);
    check(&bench, Some("mixed"), None, false);
    check(&bench, Some("mixed"), Some("x"), true);
    check(&bench, None, Some("p"), true);
    check(&bench, None, Some("q"), false);
    check(&bench, Some("nobody"), None, false);
    bench.down(&both[1]);
    check(&bench, Some("mixed"), None, true);
}
