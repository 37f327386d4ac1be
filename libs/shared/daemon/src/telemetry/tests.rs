use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use opentelemetry::trace::{Span, Tracer};

use super::*;

/// A receiver that accepts and never answers costs no request anything, and the end waits for it only so long.
#[test]
fn a_receiver_that_hangs_holds_nothing_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    // Connections are held open by this thread until the test's process ends.
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    let provider = provider("orchestratord", &endpoint).unwrap();
    let tracer = provider.tracer("test");

    let started = Instant::now();
    for _ in 0..10 * SPANS_QUEUED_MAX {
        tracer.start("admission").end();
    }
    let spans = started.elapsed();
    assert!(
        spans < Duration::from_secs(2),
        "{spans:?} for spans that nobody takes"
    );

    let started = Instant::now();
    Telemetry {
        provider: Some(provider),
    }
    .shutdown(Duration::from_millis(200));
    let end = started.elapsed();
    assert!(end < Duration::from_secs(2), "the end took {end:?}");
}

#[test]
fn settings_are_checked_before_anything_starts() {
    assert!(log_filter("info,orchestratord=debug").is_ok());
    assert!(log_filter("info,orchestratord=loud").is_err());
    assert!(log_filter("off").is_ok());
    assert!(
        log_filter("inof").is_err(),
        "a target that nothing has would silence everything"
    );
}
