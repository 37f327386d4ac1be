//! What each CLI takes in its sandbox, and so how many of them this machine holds; and that so many really run.

use std::time::{Duration, Instant};

use agents::Profile;
use anyhow::{Context as _, Result, ensure};
use pool_managerd::{capacity, machine};

use crate::Lab;
use crate::figures::{Part, table};
use crate::processes::{Sandboxed, available_bytes, private_bytes, processor_ms, sandboxes};
use crate::profiles::model;
use crate::system::{OWNERS, Place, provider, task, with_agent};

/// Sandboxes of each agent that are looked at.
const MEASURED: usize = 4;
/// Turns of each between two looks, and looks at most.
const TURNS: usize = 5;
const LOOKS_MAX: usize = 6;
/// A figure that has grown by less between two looks is stable.
const STABLE: f64 = 1.02;
/// How long idle CLIs are watched.
const IDLE: Duration = Duration::from_secs(5);
/// The agent of which as many are started as the table says.
const PROVED: &str = "codex";
/// Nobody's memory is filled to the last byte for a figure.
const LEFT_FREE_BYTES: u64 = 3 << 30;
const UNBOUNDED: &str = "1099511627776";
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) fn measure(lab: &Lab) -> Result<Part> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    let mut holds = Vec::new();
    for agent in &lab.agents {
        let took = runtime
            .block_on(cost_of(lab, agent))
            .with_context(|| agent.clone())?;
        let profile = Profile::find(agent, None)?;
        let name = format!("{agent} {}", profile.package.version);
        rows.push(took.row(&name, &profile));
        let here = machine();
        let holds_here = capacity(profile.cost.as_ref(), here.ram_total_bytes, here.cpu_cores);
        let turns = holds_here
            .turns_per_second
            .map_or_else(String::new, |turns| format!("{turns:.0}"));
        let counts = [
            holds_here.warm,
            holds_here.warm_docker,
            holds_here.hot,
            holds_here.busy,
        ];
        let mut row = vec![name];
        row.extend(counts.map(|count| count.to_string()));
        row.push(turns);
        holds.push(row);
    }
    let costs = table(
        &[
            "",
            "MiB each",
            "of it files",
            "turns until stable",
            "CPU ms to the first answer",
            "CPU ms per turn",
            "idle, % of a core",
            "in the profile",
        ],
        &rows,
    );
    let holds = table(
        &[
            "",
            "warm",
            "warm, Docker",
            "hot",
            "answering at once",
            "short turns/s",
        ],
        &holds,
    );
    let mut text = format!("{costs}\n{COSTS}\n{holds}\n{HOLDS}");
    if !lab.quick && lab.agents.iter().any(|agent| agent == PROVED) {
        text.push_str(&runtime.block_on(prove(PROVED))?);
    }
    Ok(Part {
        title: "How many this machine holds",
        bars: Vec::new(),
        text,
    })
}

const COSTS: &str = "\
Of four owners with a running CLI each: memory that a sandbox shares with no other one, and files in its memory, after as many \
turns as it takes until they grow no more; processor time of the CLI itself. In the profile: `hot_mib`, `start_cpu_ms` and \
`turn_cpu_ms`, from which the next table and `remuda doctor --capacity` are reckoned.
";

const HOLDS: &str = "\
Each agent alone on this machine, by the rules of a node: three quarters of the memory for sandboxes, half of that for those \
kept for owners who ask nothing now. `remuda doctor --capacity --memory-gib N --cores N` says the same of any machine.
";

/// What one CLI takes.
struct Took {
    each_bytes: f64,
    files_bytes: f64,
    turns: usize,
    start_cpu_ms: f64,
    turn_cpu_ms: f64,
    idle_share: f64,
}

impl Took {
    fn row(&self, name: &str, profile: &Profile) -> Vec<String> {
        let stated = profile.cost.map_or_else(
            || "nothing".to_owned(),
            |cost| format!("{}, {}, {}", cost.hot_mib, cost.start_cpu_ms, cost.turn_cpu_ms),
        );
        vec![
            name.to_owned(),
            format!("{:.0}", self.each_bytes / MIB),
            format!("{:.1}", self.files_bytes / MIB),
            self.turns.to_string(),
            format!("{:.0}", self.start_cpu_ms),
            format!("{:.0}", self.turn_cpu_ms),
            format!("{:.2}", self.idle_share * 100.0),
            stated,
        ]
    }
}

/// Asks in the name of `owner`, who has to be logged in where the CLI's files come from that.
async fn ask(place: &Place, agent: &str, owner: usize) -> Result<()> {
    let mut body = task(agent, "3*67");
    body["model"] = model(agent).into();
    place.ask(owner, &body).await.map(drop)
}

async fn begin(place: &Place, agent: &str, owner: usize) -> Result<()> {
    let files = Profile::find(agent, None)?
        .endpoint
        .is_some_and(|endpoint| !endpoint.files.is_empty());
    if files {
        place.log_in(owner, agent).await?;
    }
    ask(place, agent, owner).await
}

/// The sandboxes in which a CLI runs, with the processes of each.
fn running(place: &Place) -> Result<Vec<(Sandboxed, Vec<u32>)>> {
    let found = sandboxes(&place.directory.join("sandboxes"))?;
    let with = found.into_iter().filter_map(|one| {
        let others = one.others().ok()?;
        (!others.is_empty()).then_some((one, others))
    });
    Ok(with.collect())
}

/// Processor time of all CLIs so far.
fn processors_ms(place: &Place) -> Result<f64> {
    let all = running(place)?;
    let times = all
        .iter()
        .flat_map(|(_, pids)| pids)
        .map(|pid| processor_ms(*pid).unwrap_or(0));
    Ok(times.sum::<u64>() as f64)
}

async fn cost_of(lab: &Lab, agent: &str) -> Result<Took> {
    let provider = provider()?;
    let place = with_agent(
        agent,
        &provider,
        &[("POOL_MANAGERD_SANDBOXES_MEMORY_MAX_BYTES", UNBOUNDED)],
    )
    .await?;
    for owner in 0..MEASURED {
        eprintln!("{agent}: owner {owner}");
        begin(&place, agent, owner).await?;
    }
    let started = processors_ms(&place)?;
    let (mut last, mut turns) = ((0.0, 0.0), 0);
    for look in 0..lab.rounds(LOOKS_MAX).max(2) {
        for _ in 0..TURNS {
            for owner in 0..MEASURED {
                ask(&place, agent, owner).await?;
            }
            turns += 1;
        }
        let all = running(&place)?;
        ensure!(all.len() == MEASURED, "{} CLIs run", all.len());
        let (mut bytes, mut files) = (0, 0);
        for (sandbox, pids) in &all {
            files += sandbox.files_bytes();
            bytes += pids
                .iter()
                .map(|pid| private_bytes(*pid).unwrap_or(0))
                .sum::<u64>();
        }
        let now = ((bytes + files) as f64, files as f64);
        eprintln!(
            "{agent}: {turns} turns, {:.1} MiB each",
            now.0 / MIB / MEASURED as f64
        );
        let is_stable = now.0 < last.0 * STABLE;
        last = now;
        if is_stable && look > 0 {
            break;
        }
    }
    let after = processors_ms(&place)?;
    let idle_since = Instant::now();
    tokio::time::sleep(IDLE).await;
    let idle = processors_ms(&place)? - after;
    let each = MEASURED as f64;
    Ok(Took {
        each_bytes: last.0 / each,
        files_bytes: last.1 / each,
        turns,
        start_cpu_ms: started / each,
        turn_cpu_ms: (after - started) / each / turns as f64,
        idle_share: idle / each / (idle_since.elapsed().as_secs_f64() * 1000.0),
    })
}

/// Starts as many as the table says, and has each of them answer once more at the end.
async fn prove(agent: &str) -> Result<String> {
    let cost = Profile::find(agent, None)?
        .cost
        .context("its cost is not known")?;
    let here = machine();
    let promised = capacity(Some(&cost), here.ram_total_bytes, here.cpu_cores).hot;
    let free = available_bytes()?;
    let fit = free.saturating_sub(LEFT_FREE_BYTES) / (cost.hot_mib << 20);
    let count = usize::try_from(promised.min(fit))?.min(OWNERS);
    let provider = provider()?;
    let place = with_agent(agent, &provider, &[]).await?;
    let before = available_bytes()?;
    let begun = Instant::now();
    for owner in 0..count {
        eprintln!("{agent}: {owner} of {count}");
        begin(&place, agent, owner).await?;
    }
    let took = begun.elapsed();
    let up = running(&place)?.len();
    let used = before.saturating_sub(available_bytes()?);
    let mut hot = 0;
    for owner in 0..count {
        let mut body = task(agent, "3*67");
        body["model"] = model(agent).into();
        hot += usize::from(place.ask(owner, &body).await?.level == "hot");
    }
    ensure!(
        up == count && hot == count,
        "{up} of {count} CLIs ran, and {hot} of them answered hot"
    );
    let of = if count as u64 == promised {
        "the".to_owned()
    } else {
        format!("of the {promised},")
    };
    Ok(format!(
        "\nStarted to see whether it is so: {of} {count} CLIs of {agent} for as many owners on one node with its usual settings, in \
         {:.0} s. All ran at once, and each answered a second time without being started again. The machine had {:.1} GiB \
         less free memory then: {:.0} MiB for each.\n",
        took.as_secs_f64(),
        used as f64 / 1024.0 / MIB,
        used as f64 / MIB / count.max(1) as f64
    ))
}
