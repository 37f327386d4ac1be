//! The golden corpus: what real CLIs said, and what dialogues make of it; and the real CLIs once more.
//!
//! `cargo xtask agent-goldens` records it again (`REMUDA_RECORD_GOLDENS=real`); with `--replay` the recorded lines stay,
//! and what dialogues make of them is written anew (`REMUDA_RECORD_GOLDENS=replay`).

mod harness;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use agents::dialogue::Outcome;
use agents::{AgentEvent, Level};
use fake_provider::{FakeProvider, Step};
use harness::cli::{Place, Times, messages};
use harness::golden::{Entry, Golden, replay};
use harness::mutation::{garbage, mutated, mutation, with_garbage};
use harness::scenario;
use proptest::prelude::*;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn recording(what: &str) -> bool {
    std::env::var("REMUDA_RECORD_GOLDENS").is_ok_and(|value| value == what)
}

fn files() -> Vec<PathBuf> {
    let agents = std::fs::read_dir(corpus()).expect("the corpus");
    let mut files: Vec<PathBuf> = agents
        .flat_map(|agent| std::fs::read_dir(agent.expect("readable").path()).expect("a directory"))
        .map(|file| file.expect("readable").path())
        .collect();
    files.sort();
    files
}

#[test]
fn the_corpus_is_read_as_it_was_written() {
    let files = files();
    assert!(files.len() >= 42, "{} files", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let again = Golden::read(&text).replay().write();
        if recording("replay") {
            std::fs::write(&file, again).expect("writable");
            continue;
        }
        for (number, (line, again)) in text.lines().zip(again.lines()).enumerate() {
            assert_eq!(line, again, "{}:{}", file.display(), number + 1);
        }
        assert_eq!(text.lines().count(), again.lines().count(), "{}", file.display());
    }
}

/// Every recorded dialogue, as it came in.
fn dialogues() -> &'static [Golden] {
    static DIALOGUES: OnceLock<Vec<Golden>> = OnceLock::new();
    DIALOGUES.get_or_init(|| {
        let read = |file: &PathBuf| Golden::read(&std::fs::read_to_string(file).expect("readable"));
        files().iter().map(read).collect()
    })
}

/// What must hold whatever happens to lines: each turn that was taken ends exactly once, and nothing belongs to none.
fn check_turns(entries: &[Entry]) {
    let mut open = false;
    let mut asked = false;
    for entry in entries {
        let Entry::Event(event) = entry else {
            asked |= matches!(entry, Entry::Prompt(_));
            continue;
        };
        match event {
            AgentEvent::TurnEnded { .. } => {
                assert!(asked, "a turn ends that nobody asked for: {entries:#?}");
                (open, asked) = (false, false);
            }
            AgentEvent::Text { .. }
            | AgentEvent::TextReplaced { .. }
            | AgentEvent::Thinking { .. }
            | AgentEvent::ToolStarted { .. }
            | AgentEvent::ToolFinished { .. }
            | AgentEvent::FilesChanged { .. }
            | AgentEvent::Retry { .. }
            | AgentEvent::Usage { .. }
            | AgentEvent::TurnStarted => {
                assert!(asked, "{event:?} outside a turn");
                open = true;
            }
            _ => {}
        }
    }
    assert!(!open && !asked, "a turn has no end");
}

fn events(entries: &[Entry]) -> Vec<&AgentEvent> {
    let events = entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_lines_are_never_fatal(
        index in 0..1000_usize,
        mutations in proptest::collection::vec(mutation(), 1..6),
    ) {
        let golden = &dialogues()[index % dialogues().len()];
        let (entries, _) = replay(golden, mutated(golden, &mutations));
        check_turns(&entries);
    }

    #[test]
    fn unknown_lines_change_nothing_and_are_kept(
        index in 0..1000_usize,
        lines in proptest::collection::vec((0..10_000_usize, garbage()), 1..6),
    ) {
        let golden = &dialogues()[index % dialogues().len()];
        let (before, _) = replay(golden, golden.entries.clone());
        let (after, _) = replay(golden, with_garbage(golden, &lines));
        let known = |entries: &[Entry]| -> Vec<Entry> {
            let raw = |entry: &&Entry| {
                !matches!(entry, Entry::Event(AgentEvent::Raw { .. }) | Entry::Line(..))
            };
            entries.iter().filter(raw).cloned().collect()
        };
        prop_assert_eq!(known(&before), known(&after));
        for (_, line) in &lines {
            let kept = |event: &&AgentEvent| matches!(event, AgentEvent::Raw { line: raw, .. } if raw == line);
            prop_assert!(events(&after).iter().any(kept), "{}", line);
        }
    }

    /// Claude Code and Codex say once more what a message was as a whole: lost and doubled pieces are put right.
    #[test]
    fn pieces_of_text_that_are_lost_or_doubled_are_put_right(
        agent in prop_oneof![Just("claude"), Just("codex")],
        at in 0..10_000_usize,
        double in any::<bool>(),
    ) {
        let hot = |golden: &&Golden| golden.agent == agent && golden.hot;
        for golden in dialogues().iter().filter(hot) {
            let mut inputs = golden.entries.clone();
            let is_piece = |entry: &Entry| matches!(entry, Entry::Line(_, line)
                if line.contains("text_delta") || line.contains("item/agentMessage/delta"));
            let pieces: Vec<usize> =
                (0..inputs.len()).filter(|index| is_piece(&inputs[*index])).collect();
            let at = pieces[at % pieces.len()];
            if double {
                inputs.insert(at, inputs[at].clone());
            } else {
                inputs.remove(at);
            }
            let (before, _) = replay(golden, golden.entries.clone());
            let (after, _) = replay(golden, inputs);
            check_turns(&after);
            prop_assert_eq!(completed_turns(&before), completed_turns(&after));
        }
    }
}

/// The messages of each turn that was completed.
fn completed_turns(entries: &[Entry]) -> Vec<Vec<String>> {
    let mut turns = Vec::new();
    let mut turn = Vec::new();
    for event in events(entries) {
        turn.push(event.clone());
        if let AgentEvent::TurnEnded { outcome } = event {
            if *outcome == Outcome::Completed {
                turns.push(messages(&turn));
            }
            turn.clear();
        }
    }
    turns
}

fn real(name: &str) {
    let provider = FakeProvider::start(Step::text("201")).expect("a port");
    let place = match Place::new(name, &provider.url()) {
        Ok(place) => place,
        Err(reason) => return remuda_tests::skipped(&format!("real_{name}"), &reason),
    };
    for (file, golden) in scenario::all(&place, &provider) {
        if recording("real") {
            let directory = corpus().join(name);
            std::fs::create_dir_all(&directory).expect("writable");
            let path = directory.join(format!("{file}.txt"));
            std::fs::write(path, golden.replay().write()).expect("writable");
        }
    }
}

#[test]
fn real_claude() {
    real("claude");
}

#[test]
fn real_codex() {
    real("codex");
}

#[test]
fn real_gemini() {
    real("gemini");
}

#[test]
fn real_opencode() {
    real("opencode");
}

/// The middle of some times, in milliseconds.
fn median(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    match times.get(times.len() / 2) {
        Some(time) => format!("{:.0}", time.as_secs_f64() * 1000.0),
        None => "-".to_owned(),
    }
}

/// `cargo xtask agent-goldens --measure`: the CLIs alone, without Remuda around them, in milliseconds.
#[test]
fn measures() {
    if std::env::var_os("REMUDA_MEASURE_AGENTS").is_none() {
        return;
    }
    println!(
        "| | ready | first turn: event / text / end | hot: event / text / end | one-shot: text / end / exit |"
    );
    println!("|---|---|---|---|---|");
    for name in ["claude", "codex", "gemini", "opencode"] {
        let provider = FakeProvider::start(Step::text("201")).expect("a port");
        let place = match Place::new(name, &provider.url()) {
            Ok(place) => place,
            Err(reason) => panic!("{name}: {reason}"),
        };
        println!("{}", measure(&place));
    }
}

fn measure(place: &Place) -> String {
    let three = |times: &[Times]| {
        let event = median(times.iter().filter_map(|times| times.event).collect());
        let text = median(times.iter().filter_map(|times| times.text).collect());
        let end = median(times.iter().map(|times| times.end).collect());
        format!("{event} / {text} / {end}")
    };
    let (mut ready, mut first, mut hot) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut cli = place.start(Level::Hot, &place.home(), None, Some(scenario::MODEL));
        ready.push(cli.ready());
        first.push(cli.turn("3*67").times);
        hot.extend((0..10).map(|_| cli.turn("3*67").times));
        cli.close();
    }
    let (mut text, mut end, mut exit) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let started = Instant::now();
        let mut cli = place.start(Level::OneShot, &place.home(), None, Some(scenario::MODEL));
        let before = started.elapsed();
        let times = cli.turn("3*67").times;
        text.extend(times.text.map(|text| before + text));
        end.push(before + times.end);
        cli.close();
        exit.push(started.elapsed());
    }
    format!(
        "| {} {} | {} | {} | {} | {} / {} / {} |",
        place.profile.name,
        place.profile.package.version,
        median(ready),
        three(&first),
        three(&hot),
        median(text),
        median(end),
        median(exit)
    )
}
