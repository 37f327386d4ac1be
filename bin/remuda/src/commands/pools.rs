//! `remuda pools`: the pools that a control plane places tasks on.

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::{Client, ControlPlane, list_of, segment};
use crate::commands::interruptible;
use crate::commands::tasks::parse_duration;
use crate::output::{print_json, print_table, state_cell, table};

/// Show, drain and reload pools
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  remuda pools\n  remuda pools show demo\n  \
    remuda pools drain demo --deadline 30s\n  remuda pools reload demo")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Write JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    control_plane: ControlPlane,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all pools (what `remuda pools` does)
    #[command(after_help = "Example:\n  remuda pools list --json")]
    List,
    /// Show one pool with its replicas
    #[command(after_help = "Example:\n  remuda pools show demo")]
    Show {
        /// Which pool
        pool: String,
    },
    /// Finish what runs there and take nothing new
    #[command(after_help = "Example:\n  remuda pools drain demo --deadline 30s")]
    Drain {
        /// Which pool
        pool: String,
        /// When what still runs is ended, such as 30s or 10m
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
        deadline: Duration,
    },
    /// Start the pool's engines anew; the old ones serve until the new ones answer
    #[command(after_help = "Example:\n  remuda pools reload demo")]
    Reload {
        /// Which pool
        pool: String,
    },
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.control_plane.client()?;
    let json = arguments.json;
    interruptible(async {
        match arguments.action.unwrap_or(Action::List) {
            Action::List => list(&client, json).await,
            Action::Show { pool } => show(&client.get(&path(&pool)).await?, json),
            Action::Drain { pool, deadline } => {
                let body = json!({"deadline_ms": deadline.as_millis()});
                order(&client, &pool, "drain", &body, json).await
            }
            Action::Reload { pool } => order(&client, &pool, "reload", &json!({}), json).await,
        }
    })
    .await
}

fn path(pool: &str) -> String {
    format!("/v2/pools/{}", segment(pool))
}

async fn order(client: &Client, pool: &str, verb: &str, body: &Value, json: bool) -> Result<()> {
    let answer: Value = client.post(&format!("{}/{verb}", path(pool)), body).await?;
    if json {
        return print_json(&answer);
    }
    anstream::eprintln!("{verb} of {pool} has begun; watch it with `remuda pools show {pool}`");
    Ok(())
}

/// A pool as a control plane tells of it. Read with defaults, so that another version's answer can be shown too.
#[derive(Debug, serde::Deserialize)]
struct Pool {
    #[serde(alias = "id")]
    pool_id: String,
    #[serde(default)]
    ready: Option<bool>,
    #[serde(default)]
    draining: bool,
    #[serde(default)]
    slots_total: u32,
    #[serde(default)]
    slots_free: u32,
    #[serde(default)]
    models: Vec<Value>,
    #[serde(default)]
    queued: Option<u32>,
    #[serde(default)]
    replicas: Vec<Replica>,
    #[serde(default)]
    last_error: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
struct Replica {
    replica_id: String,
    #[serde(default)]
    node_id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    engine: String,
    #[serde(default)]
    slots_total: u32,
    #[serde(default)]
    slots_free: u32,
    #[serde(default)]
    last_error: Option<String>,
}

impl Pool {
    fn state(&self) -> &'static str {
        let ready = self
            .ready
            .unwrap_or_else(|| self.replicas.iter().any(|replica| replica.state == "ready"));
        match (self.draining, ready) {
            (true, _) => "draining",
            (false, true) => "ready",
            (false, false) => "not ready",
        }
    }

    fn models(&self) -> String {
        let name = |model: &Value| model.as_str().or_else(|| model["id"].as_str()).map(str::to_owned);
        self.models.iter().filter_map(name).collect::<Vec<_>>().join(", ")
    }
}

async fn list(client: &Client, json: bool) -> Result<()> {
    let answer: Value = client.get("/v2/pools").await?;
    if json {
        return print_json(&answer);
    }
    let pools: Vec<Pool> = list_of(answer, "pools")?;
    let mut table = table(&[
        "POOL",
        "STATE",
        "MODELS",
        "REPLICAS",
        "SLOTS FREE",
        "QUEUED",
        "LAST ERROR",
    ]);
    for pool in &pools {
        table.add_row([
            pool.pool_id.as_str().into(),
            state_cell(pool.state()),
            pool.models().into(),
            pool.replicas.len().to_string().into(),
            format!("{} of {}", pool.slots_free, pool.slots_total).into(),
            pool.queued
                .map(|queued| queued.to_string())
                .unwrap_or_default()
                .into(),
            comfy_table::Cell::new(pool.last_error.as_deref().unwrap_or("")),
        ]);
    }
    print_table(&table, "no pools yet; a node brings them")
}

fn show(answer: &Value, json: bool) -> Result<()> {
    if json {
        return print_json(answer);
    }
    let pool: Pool = serde_json::from_value(answer.clone())?;
    let mut facts = table(&["POOL", &pool.pool_id]);
    facts.add_row(["state".into(), state_cell(pool.state())]);
    facts.add_row(["models", &pool.models()]);
    facts.add_row([
        "slots free",
        &format!("{} of {}", pool.slots_free, pool.slots_total),
    ]);
    if let Some(error) = &pool.last_error {
        facts.add_row(["last error", error]);
    }
    print_table(&facts, "")?;
    anstream::println!();
    let mut replicas = table(&["REPLICA", "NODE", "STATE", "ENGINE", "SLOTS FREE", "LAST ERROR"]);
    for replica in &pool.replicas {
        replicas.add_row([
            replica.replica_id.as_str().into(),
            replica.node_id.as_str().into(),
            state_cell(&replica.state),
            replica.engine.as_str().into(),
            format!("{} of {}", replica.slots_free, replica.slots_total).into(),
            comfy_table::Cell::new(replica.last_error.as_deref().unwrap_or("")),
        ]);
    }
    print_table(&replicas, "it has no replica")
}
