//! From a prompt to its answer: each CLI alone, through Remuda, and started for each prompt.
//!
//! The ways take turns, round after round, so that what else happens on the machine meets all of them.

use std::time::{Duration, Instant};

use agents::{Level, Profile, Template};
use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::runtime::Runtime;

use crate::Lab;
use crate::figures::{Bar, Part, Promised, Times, table};
use crate::harness::cli::Place as Alone;
use crate::profiles::{MODEL, model};
use crate::system::{ANSWER, Place, Told, provider, task, with_agent};

const PROMPT: &str = "3*67";

/// How often each CLI is asked through Remuda and alone, and how often it is started.
const HOT_ROUNDS: usize = 60;
const START_ROUNDS: usize = 5;

/// What an answer through Remuda may take beyond one of the CLI alone.
const ADDED_MS: f64 = 15.0;
/// How many times faster it must be than starting the CLI.
const TIMES_FASTER: f64 = 5.0;
/// The agents of which this is promised. For others the figures are told.
const PROMISED: [&str; 3] = ["claude", "codex", "gemini"];

/// One way from a prompt to its answer, step by step.
#[derive(Default)]
struct Way {
    allocated: Times,
    started: Times,
    event: Times,
    text: Times,
    end: Times,
}

pub(crate) fn measure(lab: &Lab) -> Result<Part> {
    let mut part = Part {
        title: "From a prompt to its answer",
        bars: Vec::new(),
        text: String::new(),
    };
    let mut rows = Vec::new();
    for agent in &lab.agents {
        rows.extend(of_agent(lab, agent, &mut part.bars).with_context(|| agent.clone())?);
    }
    let heading = [
        "",
        "has a sandbox",
        "CLI starts",
        "first event",
        "first text",
        "end",
    ];
    part.text = table(&heading, &rows);
    part.text.push_str(METHOD);
    Ok(part)
}

const METHOD: &str = "
Milliseconds from the prompt, medians; the start of a CLI is the time that it takes by itself. The endpoint answers at \
once, so what is left is the CLI's own time and Remuda's. *Alone* is a child of the measuring program that has been \
running before the prompt, without a sandbox, and asks the endpoint without a proxy; *Remuda, hot* is `POST /v2/tasks` \
with an event stream at a control plane, a node of its own process, the CLI in its sandbox, every connection through the \
node's proxy. Both begin each turn in an empty conversation. *Started* is the CLI for one prompt, with the flags that make \
it fastest. *Remuda, warm* is another owner each time, whose CLI is started in a sandbox that stands ready.
";

fn of_agent(lab: &Lab, agent: &str, bars: &mut Vec<Bar>) -> Result<Vec<Vec<String>>> {
    let provider = provider()?;
    let alone = Alone::new(agent, &provider.url()).map_err(|error| anyhow!(error))?;
    let mut once = Alone::new(agent, &provider.url()).map_err(|error| anyhow!(error))?;
    fastest(&mut once.profile)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let place = runtime.block_on(with_agent(agent, &provider, &[]))?;
    let remuda = Remuda {
        agent,
        place: &place,
        runtime: &runtime,
        logs_in: alone
            .profile
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| !endpoint.files.is_empty()),
    };

    let (mut child, mut hot, mut warm, mut exec) =
        (Way::default(), Way::default(), Way::default(), Way::default());
    for round in 0..lab.rounds(START_ROUNDS).max(2) {
        eprintln!("{agent}: start {round}");
        exec.add_started(&once)?;
        remuda.warm(1 + round, &mut warm)?;
    }
    let mut cli = alone.start(Level::Hot, &alone.home(), None, Some(MODEL));
    child.started.add(cli.ready());
    remuda.log_in(0)?;
    // The first turns of a process are slower.
    for _ in 0..5 {
        remuda.hot(0)?;
        let ended = cli.turn(PROMPT);
        ensure!(ended.messages == [ANSWER], "{:?}", ended.events);
        cli.new_conversation();
    }
    let mut added = Times::default();
    for round in 0..lab.rounds(HOT_ROUNDS) {
        eprintln!("{agent}: turn {round}");
        let told = remuda.hot(0)?;
        let times = cli.turn(PROMPT).times;
        cli.new_conversation();
        added.add_ms((told.ended.as_secs_f64() - times.end.as_secs_f64()) * 1000.0);
        hot.add(&told, agent);
        let event = times.event.filter(|_| first_line(agent).is_some());
        event.into_iter().for_each(|event| child.event.add(event));
        times.text.into_iter().for_each(|text| child.text.add(text));
        child.end.add(times.end);
    }
    cli.close();

    if PROMISED.contains(&agent) {
        bars.push(Bar {
            what: format!("{agent}: prompt to answer, hot, beyond the same CLI alone"),
            measured: added.median(),
            digits: 1,
            unit: "ms",
            promised: Promised::AtMost(ADDED_MS),
        });
        bars.push(Bar {
            what: format!("{agent}: times faster than starting the CLI"),
            measured: exec.end.median() / hot.end.median(),
            digits: 1,
            unit: "×",
            promised: Promised::AtLeast(TIMES_FASTER),
        });
    }
    let version = format!("{agent} {}", alone.profile.package.version);
    Ok([
        ("started", exec),
        ("Remuda, warm", warm),
        ("alone", child),
        ("Remuda, hot", hot),
    ]
    .into_iter()
    .map(|(name, way)| way.row(&format!("{version}: {name}")))
    .collect())
}

/// What is in the first line of each turn. None: such a CLI says nothing before its text.
fn first_line(agent: &str) -> Option<&'static str> {
    match agent {
        "claude" => Some("\"subtype\":\"init\""),
        "codex" => Some("\"turn/started\""),
        _ => None,
    }
}

/// What makes a CLI fastest when it is started for one prompt, beyond what its profile says already.
fn fastest(profile: &mut Profile) -> Result<()> {
    let more: &[&str] = match profile.name.as_str() {
        "claude" => &["--bare"],
        "codex" => &["--ephemeral"],
        _ => &[],
    };
    for argument in more {
        profile
            .one_shot
            .args
            .push(Template::parse(argument, agents::template::Place::Plain)?);
    }
    Ok(())
}

struct Remuda<'a> {
    agent: &'a str,
    place: &'a Place,
    runtime: &'a Runtime,
    /// Whether its files are written by a login: what points it at an endpoint is among them.
    logs_in: bool,
}

impl Remuda<'_> {
    fn log_in(&self, owner: usize) -> Result<()> {
        if self.logs_in {
            self.runtime.block_on(self.place.log_in(owner, self.agent))?;
        }
        Ok(())
    }

    fn ask(&self, owner: usize) -> Result<Told> {
        let mut body = task(self.agent, PROMPT);
        body["model"] = model(self.agent).into();
        body["verbose"] = true.into();
        let told = self.runtime.block_on(self.place.ask(owner, &body))?;
        ensure!(told.text == ANSWER, "{told:?}");
        Ok(told)
    }

    /// A turn of a CLI that runs already.
    fn hot(&self, owner: usize) -> Result<Told> {
        self.ask(owner)
    }

    /// A turn of an owner who has no CLI yet.
    fn warm(&self, owner: usize, way: &mut Way) -> Result<()> {
        self.log_in(owner)?;
        self.runtime.block_on(self.place.warm(self.agent, 1))?;
        let told = self.ask(owner)?;
        if let Some((first_line, _)) = told.lines.first() {
            way.started.add(first_line.saturating_sub(told.started));
        }
        way.add(&told, self.agent);
        Ok(())
    }
}

impl Way {
    fn add(&mut self, told: &Told, agent: &str) {
        self.allocated.add(told.started);
        if let Some(mark) = first_line(agent) {
            // An answer to what the CLI was told between two turns may come first.
            let event = told.lines.iter().rev().find(|(_, line)| line.contains(mark));
            event.into_iter().for_each(|(at, _)| self.event.add(*at));
        }
        told.first_text.into_iter().for_each(|text| self.text.add(text));
        self.end.add(told.ended);
    }

    fn add_started(&mut self, alone: &Alone) -> Result<()> {
        let begun = Instant::now();
        let mut cli = alone.start(Level::OneShot, &alone.home(), None, Some(MODEL));
        let before = begun.elapsed();
        let ended = cli.turn(PROMPT);
        ensure!(ended.messages == [ANSWER], "{:?}", ended.events);
        let after = |time: Duration| before + time;
        ended
            .times
            .event
            .into_iter()
            .for_each(|event| self.event.add(after(event)));
        ended
            .times
            .text
            .into_iter()
            .for_each(|text| self.text.add(after(text)));
        // Who starts a program for an answer has it when the program has ended.
        cli.close();
        self.end.add(begun.elapsed());
        Ok(())
    }

    fn row(&self, name: &str) -> Vec<String> {
        let mut row = vec![name.to_owned()];
        let columns = [&self.allocated, &self.started, &self.event, &self.text, &self.end];
        row.extend(columns.map(|times| times.cell(1)));
        row
    }
}
