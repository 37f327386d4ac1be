//! Damage that happens to lines.

use agents::Source;
use proptest::prelude::*;

use super::golden::{Entry, Golden};

/// What is done to the lines of a dialogue. Places and lines are counted modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Drop(usize),
    Double(usize),
    SwapWithNext(usize),
    Truncate(usize, usize),
    /// A line of another place comes once more.
    Repeat(usize, usize),
    /// The process ends here.
    End(usize),
}

pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    let at = 0..10_000_usize;
    prop_oneof![
        at.clone().prop_map(Mutation::Drop),
        at.clone().prop_map(Mutation::Double),
        at.clone().prop_map(Mutation::SwapWithNext),
        (at.clone(), at.clone()).prop_map(|(at, length)| Mutation::Truncate(at, length)),
        (at.clone(), at.clone()).prop_map(|(at, from)| Mutation::Repeat(at, from)),
        at.prop_map(Mutation::End),
    ]
}

/// Something that no CLI says, or that is no whole line.
pub(crate) fn garbage() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{1,80}".prop_filter("no line that a CLI could say", |line| {
            !line.trim().is_empty() && serde_json::from_str::<serde_json::Value>(line).is_err()
        }),
        Just("{\"type\":\"something_new\",\"id\":\"x\",\"text\":\"not an answer\"}".to_owned()),
        Just("{\"method\":\"something/new\",\"params\":{\"delta\":\"not an answer\"}}".to_owned()),
        Just("{\"type\":\"assistant".to_owned()),
        Just("[1,2,3]".to_owned()),
        Just("\u{fffd}\u{fffd}\u{0}".to_owned()),
    ]
}

/// The inputs of a dialogue after some damage.
pub(crate) fn mutated(golden: &Golden, mutations: &[Mutation]) -> Vec<Entry> {
    let mut inputs = golden.entries.clone();
    for mutation in mutations {
        let lines: Vec<usize> = (0..inputs.len())
            .filter(|index| matches!(inputs[*index], Entry::Line(..)))
            .collect();
        if lines.is_empty() {
            break;
        }
        let line = |number: usize| lines[number % lines.len()];
        match *mutation {
            Mutation::Drop(at) => drop(inputs.remove(line(at))),
            Mutation::Double(at) => inputs.insert(line(at), inputs[line(at)].clone()),
            Mutation::SwapWithNext(at) if line(at) + 1 < inputs.len() => inputs.swap(line(at), line(at) + 1),
            Mutation::SwapWithNext(_) => {}
            Mutation::Truncate(at, length) => {
                if let Entry::Line(_, text) = &mut inputs[line(at)] {
                    let length = text.floor_char_boundary(length % (text.len() + 1));
                    text.truncate(length);
                }
            }
            Mutation::Repeat(at, from) => inputs.insert(line(at), inputs[line(from)].clone()),
            Mutation::End(at) => inputs.truncate(line(at)),
        }
    }
    if !matches!(inputs.last(), Some(Entry::Exit(_))) {
        inputs.push(Entry::Exit(None));
    }
    inputs
}

/// The inputs with further lines in between.
pub(crate) fn with_garbage(golden: &Golden, lines: &[(usize, String)]) -> Vec<Entry> {
    let mut inputs = golden.entries.clone();
    for (at, line) in lines {
        // After the start, and before the end.
        let at = 1 + at % (inputs.len() - 1);
        inputs.insert(at, Entry::Line(Source::Stdout, line.clone()));
    }
    inputs
}
