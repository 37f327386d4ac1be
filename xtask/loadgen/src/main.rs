//! Asks a gateway for much, and measures what comes back. Prints one line of JSON.
//!
//! One thread, so that it can be pinned. `hold` and `nodes` print `ready` when everything stands, and stay until their
//! input ends: whoever started them measures the other side meanwhile.

mod client;
mod events;
mod measure;
mod nodes;
mod plain;
mod streams;
mod tasks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use client::Target;

/// How much longer than asked for a run may take before it is given up.
const OVERTIME: Duration = Duration::from_secs(60);

/// Asks a gateway for much, and measures what comes back
#[derive(Debug, Parser)]
struct Cli {
    /// Where the gateway listens
    #[arg(long, global = true, default_value = "127.0.0.1:8080")]
    address: SocketAddr,
    /// The key to show
    #[arg(long, global = true, default_value = "none", hide_default_value = true)]
    key: String,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Answers that are no streams: each connection asks again as soon as it is answered
    Plain {
        #[arg(long, default_value_t = 64)]
        connections: u32,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        #[arg(
            long,
            default_value = "What is a remuda, and what was it good for on a cattle drive?"
        )]
        prompt: String,
    },
    /// Streams, each followed by the next
    Streams {
        #[arg(long, default_value_t = 200)]
        streams: u32,
        #[arg(long, default_value_t = 50)]
        chunks: u32,
        #[arg(long, default_value_t = 20)]
        interval_ms: u64,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Tasks with events, arriving at a rate
    Tasks {
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        #[arg(long, default_value = "chunks=4 interval_ms=5")]
        prompt: String,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Streams that are open and silent
    Hold {
        #[arg(long, default_value_t = 10_000)]
        streams: u32,
    },
    /// Nodes that register and send heartbeats
    Nodes {
        #[arg(long, default_value_t = 1000)]
        nodes: u32,
        #[arg(long, default_value_t = 10_000)]
        interval_ms: u64,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let limit = getrlimit(Resource::Nofile);
    // A limit that cannot be raised shows when it is reached.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(cli))
}

async fn run(cli: Cli) -> Result<()> {
    let target = Target {
        address: cli.address,
        key: cli.key,
    };
    match cli.mode {
        Mode::Plain {
            connections,
            seconds,
            prompt,
        } => {
            let time = Duration::from_secs_f64(seconds);
            print(&bounded(time, plain::run(target, connections, time, &prompt)).await?)
        }
        Mode::Streams {
            streams,
            chunks,
            interval_ms,
            seconds,
        } => {
            let time = Duration::from_secs_f64(seconds);
            let pace = streams::Pace {
                chunks,
                interval: Duration::from_millis(interval_ms),
            };
            print(
                &bounded(
                    time + pace.interval * chunks,
                    streams::run(target, streams, pace, time),
                )
                .await?,
            )
        }
        Mode::Tasks {
            rate,
            prompt,
            seconds,
        } => {
            let time = Duration::from_secs_f64(seconds);
            print(&bounded(time, tasks::run(target, rate, &prompt, time)).await?)
        }
        Mode::Hold { streams } => {
            let held = bounded(Duration::ZERO, streams::hold(&target, streams)).await?;
            println!("ready");
            input_end().await?;
            print(&serde_json::json!({"held": held.len()}))
        }
        Mode::Nodes { nodes, interval_ms } => {
            let counters = Arc::default();
            let interval = Duration::from_millis(interval_ms);
            let beating = bounded(
                Duration::ZERO,
                nodes::register(&target, nodes, interval, &counters),
            )
            .await?;
            println!("ready");
            input_end().await?;
            drop(beating);
            print(&counters.report())
        }
    }
}

async fn bounded<T>(time: Duration, run: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(time + OVERTIME, run)
        .await
        .context("took too long")?
}

/// Returns when the standard input ends.
async fn input_end() -> Result<()> {
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}

fn print(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
