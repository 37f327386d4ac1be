//! Tasks with events, in an open loop: they arrive at their rate, whatever became of those before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{Client, Target};
use crate::events::EventCounter;
use crate::measure::{Summary, Times};

/// How many tasks may be open; arrivals beyond it are counted as errors.
const OPEN_MAX: usize = 4096;

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    offered: u64,
    ended: u64,
    events: u64,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
    seconds: f64,
    /// From sending a task to its `started` event.
    started: Summary,
    /// From sending a task to its `end` event.
    whole: Summary,
}

struct Outcome {
    client: Client,
    result: Result<(Duration, Duration, u64), String>,
}

/// Offers `rate` tasks a second for `time`, follows each to its end.
pub(crate) async fn run(target: Target, rate: u32, prompt: &str, time: Duration) -> Result<Report> {
    let body = serde_json::json!({"workload": "chat", "model": "fake", "prompt": prompt});
    let request: Arc<[u8]> = target
        .request(
            "POST",
            "/v2/tasks",
            "text/event-stream",
            body.to_string().as_bytes(),
        )
        .into();
    let start = Instant::now();
    let mut idle: Vec<Client> = Vec::new();
    let mut open = JoinSet::new();
    let mut report = Report::default();
    let (mut started, mut whole) = (Times::default(), Times::default());
    while start.elapsed() < time || !open.is_empty() {
        let due = if start.elapsed() < time {
            due_by(start.elapsed(), rate)
        } else {
            0
        };
        while report.offered < due {
            report.offered += 1;
            if open.len() >= OPEN_MAX {
                report.errors += 1;
                report
                    .first_error
                    .get_or_insert_with(|| format!("{OPEN_MAX} tasks are open"));
                continue;
            }
            let client = idle.pop().unwrap_or_else(|| Client::new(&target));
            open.spawn(follow(client, Arc::clone(&request)));
        }
        let tick = tokio::time::sleep(Duration::from_millis(1));
        tokio::select! {
            Some(outcome) = open.join_next() => {
                let outcome = outcome?;
                idle.push(outcome.client);
                match outcome.result {
                    Ok((to_start, to_end, events)) => {
                        report.ended += 1;
                        report.events += events;
                        started.add(to_start);
                        whole.add(to_end);
                    }
                    Err(error) => {
                        report.errors += 1;
                        report.first_error.get_or_insert(error);
                    }
                }
            }
            () = tick => {}
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.started = started.summary();
    report.whole = whole.summary();
    Ok(report)
}

/// How many tasks have arrived after `elapsed`.
fn due_by(elapsed: Duration, rate: u32) -> u64 {
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    micros.saturating_mul(u64::from(rate)) / 1_000_000
}

async fn follow(mut client: Client, request: Arc<[u8]>) -> Outcome {
    let mut events = EventCounter::default();
    let mut to_start = None;
    let start = Instant::now();
    let status = client
        .ask(&request, |bytes| {
            events.feed(bytes);
            if to_start.is_none() && events.started {
                to_start = Some(start.elapsed());
            }
            true
        })
        .await;
    let result = match (status, to_start) {
        (Ok(200), Some(to_start)) if events.ended => Ok((to_start, start.elapsed(), events.events)),
        (Ok(200), _) if events.failed => Err("the task failed".to_owned()),
        (Ok(200), _) => Err("the events ended without an end".to_owned()),
        (Ok(status), _) => Err(format!("status {status}")),
        (Err(error), _) => Err(format!("{error:#}")),
    };
    Outcome { client, result }
}
