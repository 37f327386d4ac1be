//! What the real CLIs go through, and what must come of it.

use std::path::Path;

use agents::dialogue::Outcome;
use agents::{AgentEvent, Level};
use fake_provider::{FakeProvider, Step};
use task_api::ErrorCode;

use super::cli::{Cli, Ended, Place};
use super::golden::Golden;
use super::normal::normal;

/// The model that the CLIs are told. That they know nothing about it changes nothing here.
pub(crate) const MODEL: &str = "remuda-test";

/// How many refusals are more than any CLI tries.
const ALWAYS: usize = 40;

/// One recorded process, with a name for its file.
pub(crate) type Recorded = (String, Golden);

/// Goes through everything with one CLI.
pub(crate) fn all(place: &Place, provider: &FakeProvider) -> Vec<Recorded> {
    let mut recorded = vec![hot_turns(place, provider), hot_failures(place, provider)];
    recorded.extend(hot_conversations(place, provider));
    for (name, steps) in one_shot_scripts() {
        if place.profile.name == "opencode" && name != "text" {
            // It takes seconds to start, and one-shot it says the same lines as hot.
            continue;
        }
        recorded.push(one_shot(place, provider, name, steps));
    }
    recorded.push(one_shot_resumed(place, provider));
    recorded
}

fn hot_turns(place: &Place, provider: &FakeProvider) -> Recorded {
    let home = place.home();
    let mut cli = place.start(Level::Hot, &home, None, Some(MODEL));
    cli.ready();
    provider.script([Step::pieces(["2", "0", "1"])]);
    completed(&cli.turn("3*67"), &["201"]);
    provider.script(shell_steps());
    let ended = cli.turn("run");
    completed(&ended, &["done"]);
    check_tool(place, &ended);
    if has_write_tool(place) {
        let path = home.join("work/a.txt").display().to_string();
        provider.script([Step::write(&path, "hello\n"), Step::text("written")]);
        let ended = cli.turn("write");
        completed(&ended, &["written"]);
        assert_eq!(changed(&ended), [path.as_str()]);
        assert_eq!(std::fs::read_to_string(&path).expect("it was written"), "hello\n");
    }
    provider.script([Step::pieces(long())]);
    completed(&cli.turn("a long answer"), &[&long().concat()]);
    provider.script([Step::hang(["begun"])]);
    cli.prompt("and stop");
    let ended = cli.interrupt_after_text();
    assert_eq!(ended.outcome, Outcome::Interrupted, "{:#?}", ended.events);
    provider.script([Step::text("after it")]);
    completed(&cli.turn("go on"), &["after it"]);
    finish(place, "hot-turns", &home, cli)
}

fn hot_failures(place: &Place, provider: &FakeProvider) -> Recorded {
    let home = place.home();
    let mut cli = place.start(Level::Hot, &home, None, Some(MODEL));
    cli.ready();
    for (prompt, step) in breaks() {
        provider.script([step, whole()]);
        mended(place, &cli.turn(prompt));
    }
    provider.script([Step::retry_after(429, 1), Step::text("at last")]);
    completed(&cli.turn("wait"), &["at last"]);
    provider.script(vec![Step::status(401); ALWAYS]);
    failed(&cli.turn("who"), ErrorCode::Unauthenticated);
    provider.script([Step::text("still here")]);
    completed(&cli.turn("there?"), &["still here"]);
    finish(place, "hot-failures", &home, cli)
}

fn hot_conversations(place: &Place, provider: &FakeProvider) -> [Recorded; 2] {
    let home = place.home();
    let mut cli = place.start(Level::Hot, &home, None, Some(MODEL));
    cli.ready();
    provider.script([Step::text("noted")]);
    completed(&cli.turn("the word is walnut"), &["noted"]);
    let first = cli.session();
    cli.new_conversation();
    provider.script([Step::text("none")]);
    provider.take_seen();
    completed(&cli.turn("which word?"), &["none"]);
    let asked = conversations(provider);
    assert!(
        !asked.is_empty() && asked.iter().all(|text| !text.contains("walnut")),
        "an empty conversation: {asked:?}"
    );
    assert_ne!(first, cli.session());
    let recorded = finish(place, "hot-conversations", &home, cli);

    // A new process goes on with the first conversation.
    let mut cli = place.start(Level::Hot, &home, Some(&first), Some(MODEL));
    cli.ready();
    provider.script([Step::text("walnut")]);
    completed(&cli.turn("and now?"), &["walnut"]);
    let asked = conversations(provider);
    let remembers = |text: &String| text.contains("walnut") && !text.contains("which word?");
    assert!(asked.iter().any(remembers), "{asked:?}");
    assert_eq!(first, cli.session());
    [recorded, finish(place, "hot-resumed", &home, cli)]
}

fn one_shot_scripts() -> Vec<(&'static str, Vec<Step>)> {
    let [(_, cut), (_, short)] = breaks();
    vec![
        ("text", vec![Step::pieces(["2", "0", "1"])]),
        ("shell", shell_steps()),
        ("long", vec![Step::pieces(long())]),
        ("cut", vec![cut, whole()]),
        ("short", vec![short, whole()]),
        ("limit", vec![Step::retry_after(429, 1), Step::text("at last")]),
        ("login", vec![Step::status(401); ALWAYS]),
    ]
}

fn one_shot(place: &Place, provider: &FakeProvider, name: &str, steps: Vec<Step>) -> Recorded {
    let home = place.home();
    provider.script(steps);
    let mut cli = place.start(Level::OneShot, &home, None, Some(MODEL));
    let ended = cli.turn("a prompt\nof two lines");
    match name {
        "text" => completed(&ended, &["201"]),
        "shell" => completed(&ended, &["done"]),
        "long" => completed(&ended, &[&long().concat()]),
        "limit" => completed(&ended, &["at last"]),
        "login" => failed(&ended, ErrorCode::Unauthenticated),
        _ => mended(place, &ended),
    }
    finish(place, &format!("one-shot-{name}"), &home, cli)
}

/// Two processes in the same home, the second of which goes on where the first one ended.
fn one_shot_resumed(place: &Place, provider: &FakeProvider) -> Recorded {
    let home = place.home();
    provider.script([Step::text("noted"), Step::text("walnut")]);
    let mut cli = place.start(Level::OneShot, &home, None, Some(MODEL));
    completed(&cli.turn("the word is walnut"), &["noted"]);
    let session = cli.session();
    cli.close();
    provider.take_seen();
    let mut cli = place.start(Level::OneShot, &home, Some(&session), Some(MODEL));
    completed(&cli.turn("which word?"), &["walnut"]);
    let asked = conversations(provider);
    assert!(
        asked.iter().any(|text| text.contains("the word is walnut")),
        "{asked:?}"
    );
    finish(place, "one-shot-resumed", &home, cli)
}

fn finish(place: &Place, name: &str, home: &Path, cli: Cli) -> Recorded {
    let (golden, _) = cli.close();
    (name.to_owned(), normal(&golden, &place.names(home)))
}

/// A long answer: 200 pieces of 100 bytes. Gemini CLI stops one that repeats itself, so the letters are drawn.
fn long() -> Vec<String> {
    let mut state: u32 = 1;
    let mut letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"abcdefghijklmnopqrstuvwxyz      "[(state >> 27) as usize] as char
    };
    let mut piece = || (0..99).map(|_| letter()).chain(['\n']).collect();
    (0..200).map(|_| piece()).collect()
}

fn shell_steps() -> Vec<Step> {
    vec![Step::shell("echo out; echo err >&2"), Step::pieces(["do", "ne"])]
}

/// Two ways for a stream to break.
fn breaks() -> [(&'static str, Step); 2] {
    [
        ("cut", Step::cut(["the begin", "ning of"])),
        ("short", Step::short(["the begin", "ning of"])),
    ]
}

/// What comes when it is fetched again: the beginning a second time.
fn whole() -> Step {
    Step::pieces(["the beginning", " of it", " all"])
}

fn completed(ended: &Ended, expect: &[&str]) {
    assert_eq!(ended.outcome, Outcome::Completed, "{:#?}", ended.events);
    assert_eq!(ended.messages, expect, "{:#?}", ended.events);
}

fn failed(ended: &Ended, expect: ErrorCode) {
    match &ended.outcome {
        Outcome::Failed(failure) => assert_eq!(failure.code, expect, "{failure:?}"),
        outcome => panic!("{outcome:?}: {:#?}", ended.events),
    }
}

/// A stream that broke was fetched again, or the turn says that it failed: never are there two beginnings.
fn mended(place: &Place, ended: &Ended) {
    if ended.outcome != Outcome::Completed {
        return failed(ended, ErrorCode::WorkerReset);
    }
    let two = ["the beginning of", "the beginning of it all"];
    if place.profile.name == "opencode" && ended.messages == two {
        // It takes a stream that only lacks its end for a whole message, and asks on: two messages, also in its memory.
        return;
    }
    // It does not say when it fetches again either; on a busy machine its pause before that tells nothing.
    let unnoticed = ["the beginning ofthe beginning of it all"];
    if place.profile.name == "opencode" && ended.messages == unnoticed {
        return;
    }
    completed(ended, &["the beginning of it all"]);
}

fn check_tool(place: &Place, ended: &Ended) {
    let finished = ended.events.iter().filter_map(|event| match event {
        AgentEvent::ToolFinished {
            succeeded, output, ..
        } => Some((*succeeded, output.text.as_str())),
        _ => None,
    });
    let outputs: Vec<(bool, &str)> = finished.collect();
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    assert!(outputs[0].0, "{outputs:?}");
    // Gemini CLI does not tell over the Agent Client Protocol what a command printed.
    if place.profile.name != "gemini" {
        assert!(
            outputs[0].1.contains("out") && outputs[0].1.contains("err"),
            "{outputs:?}"
        );
    }
}

fn changed(ended: &Ended) -> Vec<&str> {
    let paths = ended.events.iter().filter_map(|event| match event {
        AgentEvent::FilesChanged { paths } => Some(paths),
        _ => None,
    });
    paths.flatten().map(String::as_str).collect()
}

/// Codex gives a model that it does not know no tool that writes files.
fn has_write_tool(place: &Place) -> bool {
    place.profile.name != "codex"
}

fn conversations(provider: &FakeProvider) -> Vec<String> {
    let asked = provider.take_seen();
    asked
        .iter()
        .map(|seen| format!("{:?}", seen.conversation))
        .collect()
}
