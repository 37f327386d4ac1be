//! Streams: many at a time, each followed by the next, with the time to the first event of each; or held open.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::client::{Client, Target};
use crate::events::EventCounter;
use crate::measure::{Summary, Times};

/// How many held streams are being opened at a time.
const OPENING_MAX: usize = 64;

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    streams: u64,
    /// `data:` lines, the last ones of each stream included.
    events: u64,
    errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
    seconds: f64,
    first_event: Summary,
}

/// How a stream is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) chunks: u32,
    pub(crate) interval: Duration,
}

#[derive(Debug, Default)]
struct Worker {
    times: Times,
    streams: u64,
    events: u64,
    errors: u64,
    first_error: Option<String>,
}

/// Keeps `streams` streams open for `time`; those that are open then are read to their end.
pub(crate) async fn run(target: Target, streams: u32, pace: Pace, time: Duration) -> Result<Report> {
    let request = request(&target, pace.chunks, pace.interval);
    let start = Instant::now();
    let whole = pace.interval * pace.chunks;
    let mut workers = JoinSet::new();
    for index in 0..streams {
        // The starts are spread over the length of one stream, by the golden ratio: so the chunks of different streams
        // come at different moments too.
        let delay = whole.mul_f64((f64::from(index) * 0.618_033_988_75).fract());
        workers.spawn(work(target.clone(), request.clone(), start + delay, start + time));
    }
    let mut all = Worker::default();
    while let Some(worker) = workers.join_next().await {
        let worker = worker?;
        all.times.merge(worker.times);
        all.streams += worker.streams;
        all.events += worker.events;
        all.errors += worker.errors;
        all.first_error = all.first_error.or(worker.first_error);
    }
    Ok(Report {
        streams: all.streams,
        events: all.events,
        errors: all.errors,
        first_error: all.first_error,
        seconds: start.elapsed().as_secs_f64(),
        first_event: all.times.summary(),
    })
}

async fn work(target: Target, request: Vec<u8>, from: Instant, until: Instant) -> Worker {
    let mut client = Client::new(&target);
    let mut worker = Worker::default();
    // The connection is there before the clock runs: what is measured is the request.
    if let Err(error) = client.connect().await {
        worker.first_error = Some(format!("{error:#}"));
    }
    tokio::time::sleep_until(from.into()).await;
    while Instant::now() < until {
        let mut events = EventCounter::default();
        let mut first = None;
        let start = Instant::now();
        let result = client
            .ask(&request, |bytes| {
                events.feed(bytes);
                if first.is_none() && events.events > 0 {
                    first = Some(start.elapsed());
                }
                true
            })
            .await;
        worker.streams += 1;
        worker.events += events.events;
        let problem = match (result, first) {
            (Ok(200), Some(first)) if events.done => {
                worker.times.add(first);
                continue;
            }
            (Ok(200), _) => "the stream ended without [DONE]".to_owned(),
            (Ok(status), _) => format!("status {status}"),
            (Err(error), _) => format!("{error:#}"),
        };
        worker.errors += 1;
        worker.first_error.get_or_insert(problem);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker
}

/// Opens `count` streams of which each has had its first event and waits for the second.
pub(crate) async fn hold(target: &Target, count: u32) -> Result<Vec<Client>> {
    let request = request(target, 2, Duration::from_secs(3600));
    let mut held = Vec::with_capacity(count as usize);
    let mut opening = JoinSet::new();
    let mut left = count;
    while left > 0 || !opening.is_empty() {
        while left > 0 && opening.len() < OPENING_MAX {
            opening.spawn(open(Client::new(target), request.clone()));
            left -= 1;
        }
        if let Some(client) = opening.join_next().await {
            held.push(client?.with_context(|| format!("after {} streams", held.len()))?);
        }
    }
    Ok(held)
}

async fn open(mut client: Client, request: Vec<u8>) -> Result<Client> {
    let mut events = EventCounter::default();
    let status = client
        .ask(&request, |bytes| {
            events.feed(bytes);
            events.events == 0
        })
        .await?;
    if status != 200 || events.events == 0 {
        bail!("status {status} with {} events", events.events);
    }
    client.shrink();
    Ok(client)
}

fn request(target: &Target, chunks: u32, interval: Duration) -> Vec<u8> {
    let body = serde_json::json!({
        "model": "fake",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant and answer in one sentence."},
            {"role": "user", "content": format!("chunks={chunks} interval_ms={}", interval.as_millis())},
        ],
        "stream": true,
    });
    target.request(
        "POST",
        "/v1/chat/completions",
        "text/event-stream",
        body.to_string().as_bytes(),
    )
}
