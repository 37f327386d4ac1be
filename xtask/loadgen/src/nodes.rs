//! Nodes that register and send heartbeats, each over a connection of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pool_registry_types::{
    Capabilities, Dialect, HeartbeatRequest, MachineId, ModelInfo, NodeId, PoolId, PoolKind, PoolReport,
    RegisterRequest, ReplicaId, ReplicaReport, ReplicaState,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, Target};

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    heartbeats: AtomicU64,
    errors: AtomicU64,
}

/// The same, printed.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    heartbeats: u64,
    errors: u64,
}

impl Counters {
    pub(crate) fn report(&self) -> Report {
        Report {
            heartbeats: self.heartbeats.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}

/// Registers `count` nodes; what is returned sends their heartbeats, evenly spread, until it is dropped.
pub(crate) async fn register(
    target: &Target,
    count: u32,
    interval: Duration,
    counters: &Arc<Counters>,
) -> Result<JoinSet<()>> {
    let mut nodes = Vec::with_capacity(count as usize);
    for index in 0..count {
        nodes.push(
            Node::register(target, index)
                .await
                .with_context(|| format!("node {index}"))?,
        );
    }
    let mut beating = JoinSet::new();
    let start = Instant::now();
    for (index, node) in (0..count).zip(nodes) {
        let first = start + interval * index / count;
        beating.spawn(node.beat(target.clone(), first, interval, Arc::clone(counters)));
    }
    Ok(beating)
}

struct Node {
    id: NodeId,
    client: Client,
    pools: Vec<PoolReport>,
    sequence: u64,
}

impl Node {
    async fn register(target: &Target, index: u32) -> Result<Self> {
        let id = NodeId::new(format!("bench-node-{index}"))?;
        let pools = vec![pool(index)?];
        let request = RegisterRequest {
            node_id: id.clone(),
            machine_id: MachineId::new(id.as_str())?,
            // Nobody listens there, and nobody is to be sent there.
            address: format!("http://127.0.0.1:{}", 1 + index % 1000),
            pools: pools.clone(),
            draining: false,
            capabilities: Capabilities::default(),
            version: "0".to_owned(),
            incarnation: "1".to_owned(),
            sequence: 1,
        };
        let body = serde_json::to_vec(&request)?;
        let mut client = Client::new(target);
        let request = target.request("POST", "/v2/nodes/register", "application/json", &body);
        match client.ask(&request, |_| true).await? {
            200..=299 => Ok(Self {
                id,
                client,
                pools,
                sequence: 1,
            }),
            status => bail!("registration answered with status {status}"),
        }
    }

    async fn beat(mut self, target: Target, first: Instant, interval: Duration, counters: Arc<Counters>) {
        let path = format!("/v2/nodes/{}/heartbeat", self.id);
        let mut due = first;
        loop {
            tokio::time::sleep_until(due).await;
            due += interval;
            self.sequence += 1;
            let heartbeat = HeartbeatRequest {
                pools: self.pools.clone(),
                draining: false,
                capabilities: None,
                incarnation: "1".to_owned(),
                sequence: self.sequence,
                time_ms: 0,
            };
            let body = serde_json::to_vec(&heartbeat).expect("reports are JSON");
            let request = target.request("POST", &path, "application/json", &body);
            let counter = match self.client.ask(&request, |_| true).await {
                Ok(200..=299) => &counters.heartbeats,
                _ => &counters.errors,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn pool(index: u32) -> Result<PoolReport> {
    let replica = ReplicaReport {
        replica_id: ReplicaId::new("r0")?,
        state: ReplicaState::Ready,
        engine: "llamacpp".to_owned(),
        engine_version: "1".to_owned(),
        models: vec![ModelInfo {
            id: "fake".to_owned(),
            aliases: Vec::new(),
            context_length: Some(4096),
            media: false,
        }],
        dialects: vec![Dialect::ChatCompletions, Dialect::Completions],
        cancel_on_stream_only: true,
        slots_total: 4,
        slots_free: 4,
        leases: Default::default(),
        vram_free_bytes: 0,
        last_error: None,
    };
    Ok(PoolReport {
        pool_id: PoolId::new(format!("pool-{}", index % 10))?,
        kind: PoolKind::Engine,
        ready: true,
        draining: false,
        slots_total: 4,
        slots_free: 4,
        vram_total_bytes: 0,
        vram_free_bytes: 0,
        last_error: None,
        replicas: vec![replica],
    })
}
