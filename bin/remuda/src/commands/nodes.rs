//! `remuda nodes`: the machines that a control plane knows.

use anyhow::Result;
use clap::Subcommand;
use pool_registry_types::NodeView;
use serde_json::{Value, json};

use crate::client::{Client, ControlPlane, list_of, segment};
use crate::commands::{confirm, interruptible};
use crate::failure::{Exit, Failure};
use crate::output::{ago, name_of, print_json, print_table, size, state_cell, table};

/// Show the nodes of a control plane
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  remuda nodes\n  remuda nodes show gpu1\n  remuda nodes --json | jq '.[].node_id'"
)]
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
    /// List all nodes (what `remuda nodes` does)
    #[command(after_help = "Example:\n  remuda nodes list")]
    List,
    /// Show one node with its pools and hardware
    #[command(after_help = "Example:\n  remuda nodes show gpu1")]
    Show {
        /// Which node
        node: String,
    },
    /// Give a node no new tasks; what it has is finished
    #[command(after_help = "Example:\n  remuda nodes drain gpu1")]
    Drain {
        /// Which node
        node: String,
    },
    /// Give a drained node new tasks again
    #[command(after_help = "Example:\n  remuda nodes undrain gpu1")]
    Undrain {
        /// Which node
        node: String,
    },
    /// Forget a node; one that still runs registers again
    #[command(after_help = "Example:\n  remuda nodes remove gpu1 --yes")]
    Remove {
        /// Which node
        node: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.control_plane.client()?;
    let json = arguments.json;
    interruptible(async {
        match arguments.action.unwrap_or(Action::List) {
            Action::List => list(&fetch(&client).await?, json),
            Action::Show { node } => show(&find(&client, &node).await?, json),
            Action::Drain { node } => client
                .post::<Value>(&format!("/v2/nodes/{}/drain", segment(&node)), &json!({}))
                .await
                .map(|_| ()),
            Action::Undrain { node } => {
                client
                    .delete(&format!("/v2/nodes/{}/drain", segment(&node)))
                    .await
            }
            Action::Remove { node, yes } => {
                find(&client, &node).await?;
                confirm(&format!("Forget node {node:?}?"), yes)?;
                client.delete(&format!("/v2/nodes/{}", segment(&node))).await
            }
        }
    })
    .await
}

async fn fetch(client: &Client) -> Result<Vec<NodeView>> {
    list_of(client.get::<Value>("/v2/nodes").await?, "nodes")
}

async fn find(client: &Client, name: &str) -> Result<NodeView> {
    let nodes = fetch(client).await?;
    let known: Vec<_> = nodes.iter().map(|node| node.node_id.to_string()).collect();
    let found = nodes.into_iter().find(|node| node.node_id.as_str() == name);
    found.ok_or_else(|| {
        let failure = Failure::new(Exit::NotFound, format!("there is no node {name:?}"));
        failure
            .hint(if known.is_empty() {
                "no node has registered".to_owned()
            } else {
                format!("there are: {}", known.join(", "))
            })
            .into()
    })
}

fn list(nodes: &[NodeView], json: bool) -> Result<()> {
    if json {
        return print_json(&nodes);
    }
    print_table(&nodes_table(nodes), "no node has registered")
}

fn nodes_table(nodes: &[NodeView]) -> comfy_table::Table {
    let mut table = table(&[
        "NODE",
        "STATE",
        "ADDRESS",
        "LAST SEEN",
        "POOLS",
        "SLOTS FREE",
        "GPUS",
        "VERSION",
    ]);
    for node in nodes {
        let pools = node
            .pools
            .iter()
            .map(|pool| pool.pool_id.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let slots_free: u32 = node.pools.iter().map(|pool| pool.slots_free).sum();
        let slots_total: u32 = node.pools.iter().map(|pool| pool.slots_total).sum();
        table.add_row([
            node.node_id.as_str().into(),
            state_cell(&name_of(&node.state)),
            node.address.as_str().into(),
            ago(node.last_seen_ms_ago).into(),
            pools.into(),
            format!("{slots_free} of {slots_total}").into(),
            node.capabilities.gpus.len().to_string().into(),
            comfy_table::Cell::new(&node.version),
        ]);
    }
    table
}

fn show(node: &NodeView, json: bool) -> Result<()> {
    if json {
        return print_json(node);
    }
    let mut facts = table(&["NODE", node.node_id.as_str()]);
    facts.add_row(["state".into(), state_cell(&name_of(&node.state))]);
    facts.add_row(["address", &node.address]);
    facts.add_row(["machine", node.machine_id.as_str()]);
    facts.add_row(["version", &node.version]);
    facts.add_row([
        "last seen",
        &format!("{} ({})", node.last_seen, ago(node.last_seen_ms_ago)),
    ]);
    facts.add_row(["processors", &node.capabilities.cpu_cores.to_string()]);
    facts.add_row(["memory", &size(node.capabilities.ram_total_bytes)]);
    for gpu in &node.capabilities.gpus {
        let text = format!(
            "{}, {} of {} free",
            gpu.name,
            size(gpu.vram_free_bytes),
            size(gpu.vram_total_bytes)
        );
        facts.add_row([&format!("gpu {}", gpu.index), &text]);
    }
    if let Some(note) = &node.capabilities.gpu_note {
        facts.add_row(["gpu", note]);
    }
    print_table(&facts, "")?;
    anstream::println!();
    let mut pools = table(&[
        "POOL",
        "REPLICA",
        "STATE",
        "ENGINE",
        "MODELS",
        "SLOTS FREE",
        "LAST ERROR",
    ]);
    for (pool, replica) in node
        .pools
        .iter()
        .flat_map(|pool| pool.replicas.iter().map(move |replica| (pool, replica)))
    {
        let models = replica
            .models
            .iter()
            .map(|model| model.id.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let error = replica.last_error.as_ref().or(pool.last_error.as_ref());
        pools.add_row([
            pool.pool_id.as_str().into(),
            replica.replica_id.as_str().into(),
            state_cell(&name_of(&replica.state)),
            format!("{} {}", replica.engine, replica.engine_version)
                .trim_end()
                .into(),
            models.into(),
            format!("{} of {}", replica.slots_free, replica.slots_total).into(),
            comfy_table::Cell::new(error.map_or("", String::as_str)),
        ]);
    }
    print_table(&pools, "it has no pools")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::plain;

    #[test]
    fn the_table_shows_who_is_alive_and_where_there_is_room() {
        let pool = json!({"pool_id": "demo", "ready": true, "slots_total": 4, "slots_free": 3});
        let node = |id: &str, state: &str, ms: u64, pools: Value| {
            json!({"node_id": id, "machine_id": "m", "address": "https://h:9200", "state": state, "last_seen": "",
                "last_seen_ms_ago": ms, "version": "0.1.0", "capabilities": {}, "pools": pools})
        };
        let answer = json!({"nodes": [node("gpu1", "online", 2_300, json!([pool])), node("gpu2", "offline", 99_000, json!([]))]});
        let nodes: Vec<NodeView> = list_of(answer, "nodes").unwrap();
        let expect = "\
NODE  STATE    ADDRESS         LAST SEEN       POOLS  SLOTS FREE  GPUS  VERSION
gpu1  online   https://h:9200  2.3 s ago       demo   3 of 4      0     0.1.0
gpu2  offline  https://h:9200  1 min 39 s ago         0 of 0      0     0.1.0
";
        assert_eq!(plain(&nodes_table(&nodes)), expect);
    }
}
