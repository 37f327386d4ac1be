//! Answers that are no streams, in a closed loop: each connection asks again as soon as it has its answer.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{Client, Target};
use crate::measure::{Summary, Times};

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    requests: usize,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
    seconds: f64,
    requests_per_second: f64,
    latency: Summary,
}

#[derive(Debug, Default)]
struct Worker {
    times: Times,
    errors: u64,
    first_error: Option<String>,
}

/// Asks over `connections` connections for `time`.
pub(crate) async fn run(target: Target, connections: u32, time: Duration, prompt: &str) -> Result<Report> {
    let request = target.request("POST", "/v1/chat/completions", "application/json", &body(prompt));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(work(target.clone(), request.clone(), start + time));
    }
    let mut all = Worker::default();
    while let Some(worker) = workers.join_next().await {
        let worker = worker?;
        all.times.merge(worker.times);
        all.errors += worker.errors;
        all.first_error = all.first_error.or(worker.first_error);
    }
    let seconds = start.elapsed().as_secs_f64();
    let requests = all.times.len();
    Ok(Report {
        requests,
        errors: all.errors,
        first_error: all.first_error,
        seconds,
        requests_per_second: requests as f64 / seconds,
        latency: all.times.summary(),
    })
}

async fn work(target: Target, request: Vec<u8>, until: Instant) -> Worker {
    let mut client = Client::new(&target);
    let mut worker = Worker::default();
    let mut now = Instant::now();
    while now < until {
        let result = client.ask(&request, |_| true).await;
        let done = Instant::now();
        let problem = match result {
            Ok(200) => {
                worker.times.add(done - now);
                None
            }
            Ok(status) => Some(format!("status {status}")),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(problem) = problem {
            worker.errors += 1;
            worker.first_error.get_or_insert(problem);
            // A server that refuses at once must not turn this loop into a busy one.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        now = Instant::now();
    }
    worker
}

fn body(prompt: &str) -> Vec<u8> {
    serde_json::json!({
        "model": "fake",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant and answer in one sentence."},
            {"role": "user", "content": prompt},
        ],
        "max_tokens": 64,
    })
    .to_string()
    .into_bytes()
}
