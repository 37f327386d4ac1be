//! A CLI of which nothing is known: every line is text, and the end of the process is the end of the turn.

use serde_json::Value;

use super::{AgentEvent, Common, Outcome, Reaction, Speaker, Turn};

#[derive(Debug)]
pub(super) struct Lines;

impl Speaker for Lines {
    fn start(&mut self, common: &mut Common, reaction: &mut Reaction) {
        common.ready(reaction);
    }

    fn prompt(&mut self, _common: &mut Common, turn: &Turn, reaction: &mut Reaction) {
        reaction.lines.push(turn.prompt.clone());
        reaction.event(AgentEvent::TurnStarted);
    }

    fn value(
        &mut self,
        _common: &mut Common,
        _now_ms: u64,
        _value: &Value,
        _reaction: &mut Reaction,
    ) -> bool {
        false
    }

    fn plain(&mut self, common: &mut Common, line: &str, reaction: &mut Reaction) -> bool {
        if common.in_turn() {
            common.text.push(&format!("{line}\n"), reaction);
        }
        common.in_turn()
    }

    fn ended_well(&mut self, _common: &mut Common) -> Option<Outcome> {
        Some(Outcome::Completed)
    }
}
