//! What comes out on standard error. The process under test is this one, started again.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

use std::process::{Command, Output};

use daemon::secret::Secret;
use daemon::telemetry::{LogFormat, TelemetrySettings, init, tracing_enabled};
use tracing::level_filters::LevelFilter;

const AS_CHILD: &str = "REMUDA_TEST_LOGS";

#[test]
fn json_has_the_fields_of_event_and_spans_and_no_secret() {
    let output = child("json");
    let lines: Vec<&str> = output.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "debug is not said at level info: {output}");
    for part in [
        r#""level":"INFO""#,
        r#""message":"placed""#,
        r#""replica_id":"r0""#,
        r#""token":"[secret]""#,
        r#""task_id":"task-17""#,
        r#""pool_id":"pool-0""#,
    ] {
        assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
    }
    assert!(!output.contains("llorch-9f2c"));
}

#[test]
fn people_get_lines_and_no_colours_without_a_terminal() {
    let output = child("people");
    let line = output.lines().find(|line| line.contains("placed")).unwrap();
    assert!(
        line.contains("INFO") && line.contains("task-17") && line.contains("replica_id"),
        "{line}"
    );
    assert!(!line.contains('\u{1b}') && !line.starts_with('{'), "{line}");
}

/// Runs in the child alone; in the parent it has nothing to do.
#[test]
fn says_something() {
    let log_format = match std::env::var(AS_CHILD).as_deref() {
        Ok("json") => LogFormat::Auto,
        Ok(_) => LogFormat::People,
        Err(_) => return,
    };
    let telemetry = init(
        "orchestratord",
        &TelemetrySettings {
            log_format,
            ..TelemetrySettings::default()
        },
    )
    .unwrap();
    assert!(!tracing_enabled(), "nobody takes spans");
    assert_eq!(
        LevelFilter::current(),
        LevelFilter::INFO,
        "finer events cost one look at a number"
    );
    let token = Secret::new("llorch-9f2c");
    let _task = tracing::info_span!("task", task_id = "task-17").entered();
    let _pool = tracing::info_span!("placement", pool_id = "pool-0").entered();
    tracing::info!(replica_id = "r0", %token, "placed");
    tracing::debug!("too fine");
    telemetry.shutdown(std::time::Duration::from_secs(1));
}

fn child(format: &str) -> String {
    let Output { status, stderr, .. } = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "says_something", "--nocapture"])
        .env(AS_CHILD, format)
        .output()
        .unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stderr).unwrap()
}
