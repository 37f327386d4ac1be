//! `remuda pools`: the pools that a control plane places tasks on.

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};
use task_api::PoolView;

use crate::client::{Client, ControlPlane, list_of, segment};
use crate::commands::interruptible;
use crate::commands::tasks::parse_duration;
use crate::failure::{Exit, Failure};
use crate::output::{name_of, print_json, print_table, state_cell, table};

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
    /// Give a drained pool new tasks again
    #[command(after_help = "Example:\n  remuda pools undrain demo")]
    Undrain {
        /// Which pool
        pool: String,
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
            Action::Undrain { pool } => client.delete(&format!("{}/drain", path(&pool))).await,
            Action::Reload { pool } => order(&client, &pool, "reload", &json!({}), json).await,
        }
    })
    .await
}

fn path(pool: &str) -> String {
    format!("/v2/pools/{}", segment(pool))
}

async fn order(client: &Client, pool: &str, verb: &str, body: &Value, json: bool) -> Result<()> {
    let told: Value = client.post(&format!("{}/{verb}", path(pool)), body).await?;
    if json {
        print_json(&told)?;
    }
    let failed: Vec<_> = told["failed"].as_array().into_iter().flatten().collect();
    for node in &failed {
        let text = |key: &str| node[key].as_str().unwrap_or("?").to_owned();
        anstream::eprintln!("node {}: {}", text("node_id"), text("message"));
    }
    if !failed.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("{} nodes could not be told", failed.len())).into());
    }
    anstream::eprintln!("{verb} of {pool} has begun; watch it with `remuda pools show {pool}`");
    Ok(())
}

fn state(pool: &PoolView) -> &'static str {
    match (pool.draining, pool.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    }
}

fn models(pool: &PoolView) -> String {
    pool.models
        .iter()
        .map(|model| model.id.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

async fn list(client: &Client, json: bool) -> Result<()> {
    let answer: Value = client.get("/v2/pools").await?;
    let pools: Vec<PoolView> = list_of(answer, "pools")?;
    if json {
        return print_json(&pools);
    }
    print_table(&pools_table(&pools), "no pools yet; a node brings them")
}

fn pools_table(pools: &[PoolView]) -> comfy_table::Table {
    let mut table = table(&[
        "POOL",
        "STATE",
        "MODELS",
        "REPLICAS",
        "SLOTS FREE",
        "QUEUED",
        "LAST ERROR",
    ]);
    for pool in pools {
        table.add_row([
            pool.pool_id.as_str().into(),
            state_cell(state(pool)),
            models(pool).into(),
            pool.replicas.len().to_string().into(),
            format!("{} of {}", pool.slots_free, pool.slots_total).into(),
            pool.queued.to_string().into(),
            comfy_table::Cell::new(pool.last_error.as_deref().unwrap_or("")),
        ]);
    }
    table
}

fn show(pool: &PoolView, json: bool) -> Result<()> {
    if json {
        return print_json(pool);
    }
    let mut facts = table(&["POOL", pool.pool_id.as_str()]);
    facts.add_row(["state".into(), state_cell(state(pool))]);
    facts.add_row(["models", &models(pool)]);
    facts.add_row(["queued", &pool.queued.to_string()]);
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
        let replica_state = name_of(&replica.state);
        replicas.add_row([
            replica.replica_id.as_str().into(),
            replica.node_id.as_str().into(),
            state_cell(if replica.taken_out {
                "taken out"
            } else {
                &replica_state
            }),
            replica.engine.as_str().into(),
            format!("{} of {}", replica.slots_free, replica.slots_total).into(),
            comfy_table::Cell::new(replica.last_error.as_deref().unwrap_or("")),
        ]);
    }
    print_table(&replicas, "it has no replica")
}
