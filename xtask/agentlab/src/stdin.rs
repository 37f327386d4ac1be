//! From a claim at the node's door to the first byte on a CLI's standard input, as the CLI sees it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pool_managerd::{AgentsConfig, Launch, Node, NodeConfig, NodeHandle, PoolSettings};
use pool_registry_types::{AgentEvent, AgentOutcome, AgentRun, WarmLevel};
use sandbox::InitProgram;

use crate::Lab;
use crate::figures::{Bar, Part, Promised, Times, table};
use crate::system::fake_agent;

const WARM_RUNS: usize = 300;
const HOT_RUNS: usize = 3000;
/// Between two owners, so that the pool keeps up: this is about a pool that has warm sandboxes.
const PACE: Duration = Duration::from_millis(60);

pub(crate) fn measure(lab: &Lab) -> Result<Part> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (warm, hot) = runtime.block_on(runs(lab))?;
    let bar = |what: &str, times: &Times, most| Bar {
        what: format!("claim to the first byte on the CLI's input, {what}, p99"),
        measured: times.at(99),
        digits: 2,
        unit: "ms",
        promised: Promised::AtMost(most),
    };
    let row = |name: &str, times: &Times| {
        let cell = |percent| format!("{:.2}", times.at(percent));
        vec![
            name.to_owned(),
            times.count().to_string(),
            cell(50),
            cell(99),
            cell(100),
        ]
    };
    let heading = ["", "runs", "p50", "p99", "longest"];
    let mut text = table(
        &heading,
        &[row("warm sandbox, a new owner each", &warm), row("hot", &hot)],
    );
    text.push_str(
        "\nMilliseconds. From the call of the node's door to the moment at which a stand-in for a CLI has read its first \
         byte, by its own clock; warm: the owner's home opened and the program started meanwhile.\n",
    );
    Ok(Part {
        title: "From a claim to a CLI's input",
        bars: vec![bar("warm sandbox", &warm, 10.0), bar("hot", &hot, 2.0)],
        text,
    })
}

async fn runs(lab: &Lab) -> Result<(Times, Times)> {
    let directory = tempfile::tempdir()?;
    let node = node(directory.path())?;
    let id = fake_agent::NAME.parse()?;
    while !node.door().pool(&id).is_some_and(|pool| pool.ready) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut warm, mut hot) = (Times::default(), Times::default());
    for run in 0..lab.rounds(WARM_RUNS) {
        tokio::time::sleep(PACE).await;
        let (level, took) = claim(&node, &format!("owner-{run}"), Read::First).await?;
        if level == WarmLevel::Warm {
            warm.add(took);
        }
    }
    ensure!(warm.count() > 0, "no sandbox was warm");
    for _ in 0..lab.rounds(HOT_RUNS) {
        let (level, took) = claim(&node, "owner-0", Read::Prompt).await?;
        ensure!(level == WarmLevel::Hot, "{level:?}");
        hot.add(took);
    }
    node.shutdown(Duration::from_secs(30), true).await;
    Ok((warm, hot))
}

/// What the CLI shall have read.
#[derive(Clone, Copy)]
enum Read {
    First,
    Prompt,
}

async fn claim(node: &NodeHandle, owner: &str, read: Read) -> Result<(WarmLevel, Duration)> {
    let run = AgentRun {
        task_id: "t".to_owned(),
        owner: owner.to_owned(),
        prompt: "when".to_owned(),
        session_id: None,
        model: None,
        effort: None,
        timeout_ms: Some(60_000),
        workspace: None,
        verbose: false,
        local_model: None,
    };
    let begun = fake_agent::monotonic_ns();
    let mut events = node
        .door()
        .run_agent(&fake_agent::NAME.parse()?, &"lab".parse()?, run)
        .await?;
    let (mut level, mut text) = (None, String::new());
    while let Some(event) = events.next().await {
        match event {
            AgentEvent::Claimed { level: claimed, .. } => level = Some(claimed),
            AgentEvent::Text { text: more } => text.push_str(&more),
            AgentEvent::Ended { outcome } => ensure!(outcome == AgentOutcome::Completed, "{outcome:?}"),
            _ => {}
        }
    }
    let (prompt, first) = text.split_once(' ').context("two times")?;
    let at: u64 = match read {
        Read::First => first,
        Read::Prompt => prompt,
    }
    .parse()?;
    Ok((
        level.context("a level")?,
        Duration::from_nanos(at.saturating_sub(begun)),
    ))
}

fn node(directory: &std::path::Path) -> Result<NodeHandle> {
    fake_agent(directory)?;
    let mut pool = PoolSettings::with_agent(fake_agent::NAME.parse()?, fake_agent::NAME);
    pool.warm = Some(32);
    pool.runs_max = Some(8);
    let engines = engine_provisioner::Settings {
        handoff_dir: directory.join("engines"),
        ..engine_provisioner::Settings::default()
    };
    let mut config = NodeConfig::new(vec![pool], engines);
    config.agents = AgentsConfig {
        directory: directory.join("agents"),
        installed: directory.join("installed"),
        profiles: Some(directory.join("profiles")),
        init: InitProgram {
            path: remuda_tests::binary("remuda-init"),
            arguments: Vec::new(),
        },
        // Nothing is ended to make room: that is another figure.
        sandboxes_max: 1000,
        memory_max_bytes: Some(1 << 40),
        ..AgentsConfig::default()
    };
    Ok(Node::start(config, Launch::InProcess)?)
}
