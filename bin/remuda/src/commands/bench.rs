//! `remuda bench`: how a control plane does under a small load, as its clients see it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::answer::{self, Answer, Message, Question};
use crate::client::{Client, ControlPlane};
use crate::commands::interruptible;
use crate::failure::{Exit, Failure};
use crate::output::{duration, print_json, print_table, table};

/// Load a control plane a little and see how it does
///
/// Sends streamed chat requests and reports what its clients see: time to the first token, time to the end, tokens per
/// second, and what failed. To compare builds of Remuda itself, developers use `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  remuda bench\n  \
    remuda bench --model demo --concurrency 32 --requests 1000\n  remuda bench --prompt count --max-tokens 100 --json")]
pub(crate) struct Arguments {
    /// The model [default: the only one there is]
    #[arg(long)]
    model: Option<String>,

    /// How many requests are open at once
    #[arg(long, short, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: u32,

    /// How many requests in all
    #[arg(long, short = 'n', default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,

    /// What to ask
    #[arg(long, default_value = "3*67")]
    prompt: String,

    /// The most tokens in one answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,

    /// Write JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Debug, Default)]
struct Seen {
    answers: Vec<Answer>,
    failures: BTreeMap<String, u32>,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    concurrency: u32,
    succeeded: usize,
    failed: u32,
    failures: BTreeMap<String, u32>,
    took_ms: u64,
    requests_per_s: f64,
    tokens_per_s: f64,
    first_token_ms: Percentiles,
    total_ms: Percentiles,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Percentiles {
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.control_plane.client()?;
    let model = match &arguments.model {
        Some(model) => model.clone(),
        None => answer::only_model(&client).await?,
    };
    let bar = if arguments.json {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(arguments.requests.into())
    };
    let began = Instant::now();
    let seen = interruptible(load(&client, &model, &arguments, &bar)).await?;
    bar.finish_and_clear();
    let report = report(model, arguments.concurrency, &seen, began.elapsed());
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report)?;
    }
    if report.succeeded == 0 {
        return Err(Failure::new(Exit::Failed, "no request succeeded").into());
    }
    Ok(())
}

/// Keeps `concurrency` requests open until all have been sent.
async fn load(client: &Client, model: &str, arguments: &Arguments, bar: &ProgressBar) -> Result<Seen> {
    let left = Arc::new(AtomicU32::new(arguments.requests));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..arguments.concurrency.min(arguments.requests) {
        let worker = Worker {
            client: client.clone(),
            model: model.to_owned(),
            messages: vec![Message::user(&arguments.prompt)],
            max_tokens: arguments.max_tokens,
            left: Arc::clone(&left),
            bar: bar.clone(),
        };
        workers.spawn(worker.run());
    }
    let mut all = Seen::default();
    while let Some(seen) = workers.join_next().await {
        let seen = seen?;
        all.answers.extend(seen.answers);
        for (message, count) in seen.failures {
            *all.failures.entry(message).or_default() += count;
        }
    }
    Ok(all)
}

struct Worker {
    client: Client,
    model: String,
    messages: Vec<Message>,
    max_tokens: u32,
    left: Arc<AtomicU32>,
    bar: ProgressBar,
}

impl Worker {
    async fn run(self) -> Seen {
        let mut seen = Seen::default();
        let take = || {
            self.left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
        };
        while take() {
            let question = Question {
                model: &self.model,
                messages: &self.messages,
                max_tokens: Some(self.max_tokens),
            };
            match answer::ask(&self.client, &question, |_| ()).await {
                Ok(answer) => seen.answers.push(answer),
                Err(error) => *seen.failures.entry(format!("{error:#}")).or_default() += 1,
            }
            self.bar.inc(1);
        }
        seen
    }
}

fn report(model: String, concurrency: u32, seen: &Seen, took: Duration) -> Report {
    let tokens: u64 = seen.answers.iter().filter_map(|answer| answer.tokens_out).sum();
    let per_second = |count: f64| count / took.as_secs_f64().max(f64::EPSILON);
    Report {
        model,
        concurrency,
        succeeded: seen.answers.len(),
        failed: seen.failures.values().sum(),
        failures: seen.failures.clone(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        requests_per_s: per_second(seen.answers.len() as f64),
        tokens_per_s: per_second(tokens as f64),
        first_token_ms: percentiles(
            seen.answers
                .iter()
                .filter_map(|answer| answer.first_token_ms)
                .collect(),
        ),
        total_ms: percentiles(seen.answers.iter().map(|answer| answer.total_ms).collect()),
    }
}

/// Nearest-rank percentiles.
fn percentiles(mut values: Vec<u64>) -> Percentiles {
    values.sort_unstable();
    let at = |share: usize| {
        let rank = (values.len() * share).div_ceil(100).max(1);
        values.get(rank - 1).copied().unwrap_or(0)
    };
    Percentiles {
        p50: at(50),
        p90: at(90),
        p99: at(99),
        max: at(100),
    }
}

fn print(report: &Report) -> Result<()> {
    let took = duration(Duration::from_millis(report.took_ms));
    anstream::println!(
        "{} answers from {} in {took}, {} at once: {:.1} requests/s, {:.1} tokens/s",
        report.succeeded,
        report.model,
        report.concurrency,
        report.requests_per_s,
        report.tokens_per_s
    );
    let mut times = table(&["", "P50", "P90", "P99", "MAX"]);
    for (name, values) in [
        ("first token", &report.first_token_ms),
        ("whole answer", &report.total_ms),
    ] {
        let Percentiles { p50, p90, p99, max } = values;
        let cells = [p50, p90, p99, max].map(|ms| duration(Duration::from_millis(*ms)));
        times.add_row(std::iter::once(name.to_owned()).chain(cells));
    }
    print_table(&times, "")?;
    for (message, count) in &report.failures {
        anstream::println!("{count} failed: {message}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        assert_eq!(percentiles(vec![]), Percentiles::default());
        assert_eq!(
            percentiles(vec![7]),
            Percentiles {
                p50: 7,
                p90: 7,
                p99: 7,
                max: 7
            }
        );
        let hundred = (1..=100).rev().collect();
        assert_eq!(
            percentiles(hundred),
            Percentiles {
                p50: 50,
                p90: 90,
                p99: 99,
                max: 100
            }
        );
    }
}
