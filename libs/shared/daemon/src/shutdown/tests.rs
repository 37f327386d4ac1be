use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::exit;

const LONG: Duration = Duration::from_secs(3600);

fn code(shutdown: &Shutdown, drained: Drained) -> u8 {
    shutdown
        .outcome(drained)
        .map_or_else(|ended| ended.code, |()| exit::OK)
}

#[tokio::test(start_paused = true)]
async fn work_is_finished_and_background_is_not_waited_for() {
    let shutdown = Shutdown::new();
    let finished = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&finished);
    shutdown.spawn("answer", Kind::Work, async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        set.store(true, Ordering::SeqCst);
    });
    shutdown.spawn("heartbeat", Kind::Background, std::future::pending());
    shutdown.stop();
    let drained = shutdown.drain(Duration::from_secs(30)).await;
    assert!(finished.load(Ordering::SeqCst));
    assert_eq!(
        (drained, code(&shutdown, drained), shutdown.tasks()),
        (Drained::Clean, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn the_deadline_drops_what_is_left() {
    let shutdown = Shutdown::new();
    shutdown.spawn("answer", Kind::Work, tokio::time::sleep(LONG));
    shutdown.stop();
    let started = tokio::time::Instant::now();
    let drained = shutdown.drain(Duration::from_secs(30)).await;
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(
        (drained, code(&shutdown, drained), shutdown.tasks()),
        (Drained::Aborted, 130, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_background_task_that_ends_or_panics_is_a_fault() {
    for panics in [false, true] {
        let shutdown = Shutdown::new();
        shutdown.spawn("watcher", Kind::Background, async move {
            assert!(!panics, "out of handles");
        });
        let drained = shutdown.drain(LONG).await;
        assert_eq!(code(&shutdown, drained), 70);
        let fault = shutdown.fault().unwrap();
        assert_eq!(fault.contains("out of handles"), panics, "{fault}");
        assert!(fault.contains("watcher"), "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_piece_of_work_stays_there() {
    let shutdown = Shutdown::new();
    shutdown.spawn("answer", Kind::Work, async { panic!("bad luck") });
    tokio::task::yield_now().await;
    assert!(!shutdown.is_stopping());
    shutdown.stop();
    assert_eq!(shutdown.drain(LONG).await, Drained::Clean);
}

#[tokio::test]
async fn signals_stop_and_a_second_one_cuts_it_short() {
    let shutdown = Shutdown::new();
    let listening = shutdown.listen_to_signals().unwrap();
    let tracked = tokio::spawn(shutdown.track(tokio::time::sleep(Duration::from_secs(1))));
    shutdown.spawn("answer", Kind::Work, tokio::time::sleep(LONG));
    let own = rustix::process::getpid();
    let send = |signal| rustix::process::kill_process(own, signal).unwrap();
    let soon = async |what: Pin<&mut dyn Future<Output = ()>>| {
        tokio::time::timeout(Duration::from_secs(10), what).await
    };

    send(rustix::process::Signal::HUP);
    soon(pin!(shutdown.files_changed()))
        .await
        .expect("a hangup is passed on");
    assert!(!shutdown.is_stopping(), "a hangup ends no daemon");
    send(rustix::process::Signal::TERM);
    soon(pin!(shutdown.stopped()))
        .await
        .expect("the first signal begins the shutdown");
    send(rustix::process::Signal::INT);
    let drained = tokio::time::timeout(Duration::from_secs(10), shutdown.drain(LONG))
        .await
        .unwrap();
    assert_eq!((drained, code(&shutdown, drained)), (Drained::Aborted, 130));
    listening.await.unwrap();
    tracked.await.unwrap();
}
