//! Conversations that are loaded, told by an agent that writes its lines as Gemini CLI does.

use std::collections::VecDeque;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::dialogue::{AgentEvent, Dialogue, DialogueSettings, Outcome, Reaction, Source, Turn};
use crate::profile::{Level, Profile};

const NOW_MS: u64 = 1_700_000_000_000;

/// An agent with one queue for its lines. A piece of the past is put into it when the one before it has been written,
/// which the agent notices some time after its reader: in between it may read, and answer.
#[derive(Default)]
struct Agent {
    inbox: VecDeque<Value>,
    queue: VecDeque<(Value, bool)>,
    /// What is written, and whether it is of the past.
    writing: Option<bool>,
    past: VecDeque<Value>,
    told: usize,
}

/// What happens next, where it can.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read,
    Write,
    Written,
}

impl Agent {
    fn update(name: &Value, update: &Value) -> Value {
        json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": name, "update": update}})
    }

    fn next_of_past(&mut self) {
        if let Some(piece) = self.past.pop_front() {
            self.queue.push_back((piece, true));
        }
    }

    fn read(&mut self, pieces: usize) {
        let Some(asked) = self.inbox.pop_front() else {
            return;
        };
        let params = &asked["params"];
        let mut answer = json!({"jsonrpc": "2.0", "id": asked["id"]});
        match asked["method"].as_str().expect("it asks") {
            "initialize" => answer["result"] = json!({"protocolVersion": 1}),
            "session/load" => {
                assert_eq!(params["sessionId"], " s1", "as the profile says");
                let kinds = [
                    "user_message_chunk",
                    "agent_message_chunk",
                    "agent_thought_chunk",
                    "tool_call",
                ];
                self.past = (0..pieces)
                    .map(|index| {
                        let update = json!({
                            "sessionUpdate": kinds[index % 4], "toolCallId": format!("t{index}"), "kind": "edit",
                            "status": "completed", "content": {"type": "text", "text": "past"},
                        });
                        Self::update(&params["sessionId"], &update)
                    })
                    .collect();
                self.next_of_past();
                answer["result"] = json!({});
            }
            "session/prompt" => {
                let text = json!({"sessionUpdate": "agent_message_chunk", "content": {"text": "present"}});
                self.queue
                    .push_back((Self::update(&params["sessionId"], &text), false));
                answer["result"] = json!({"stopReason": "end_turn"});
            }
            _ => answer["error"] = json!({"code": -32601, "message": "Method not found"}),
        }
        self.queue.push_back((answer, false));
    }

    fn step(&mut self, step: Step, pieces: usize) -> Option<Value> {
        match step {
            Step::Read => self.read(pieces),
            Step::Write if self.writing.is_none() => {
                let (line, is_past) = self.queue.pop_front()?;
                self.writing = Some(is_past);
                self.told += usize::from(is_past);
                return Some(line);
            }
            Step::Write => {}
            Step::Written => {
                if self.writing.take() == Some(true) {
                    self.next_of_past();
                }
            }
        }
        None
    }
}

fn resumed() -> Dialogue {
    let settings = DialogueSettings {
        session: Some("s1".to_owned()),
        ..DialogueSettings::default()
    };
    let gemini = Profile::builtin("gemini").expect("it is built in").unwrap();
    gemini.dialogue(Level::Hot, settings)
}

fn take(agent: &mut Agent, events: &mut Vec<AgentEvent>, reaction: Reaction) {
    let lines = reaction.lines.iter();
    agent
        .inbox
        .extend(lines.map(|line| serde_json::from_str::<Value>(line).unwrap()));
    events.extend(reaction.events);
}

fn is_of_a_turn(event: &&AgentEvent) -> bool {
    !matches!(
        event,
        AgentEvent::Session { .. } | AgentEvent::Ready | AgentEvent::Raw { .. }
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_past_is_never_an_answer(
        pieces in 0..12_usize,
        waits in any::<bool>(),
        steps in proptest::collection::vec(prop_oneof![
            2 => Just(Step::Read), 2 => Just(Step::Write), 3 => Just(Step::Written),
        ], 0..200),
    ) {
        let mut dialogue = resumed();
        let (mut agent, mut events) = (Agent::default(), Vec::new());
        take(&mut agent, &mut events, dialogue.start());
        let mut asked = false;
        if waits {
            asked = true;
            take(&mut agent, &mut events, dialogue.prompt(Turn::new("now?")).unwrap());
        }
        // Then everything in turn, until all is said.
        let in_turn = [Step::Read, Step::Write, Step::Written].into_iter().cycle().take(600);
        for step in steps.into_iter().chain(in_turn) {
            if let Some(line) = agent.step(step, pieces) {
                let reaction = dialogue.line(NOW_MS, Source::Stdout, &line.to_string());
                take(&mut agent, &mut events, reaction);
            }
            if !asked && events.contains(&AgentEvent::Ready) {
                asked = true;
                prop_assert_eq!(agent.told, pieces, "it is ready when the past is over");
                take(&mut agent, &mut events, dialogue.prompt(Turn::new("now?")).unwrap());
            }
        }
        prop_assert_eq!(agent.told, pieces);
        let of_the_turn: Vec<&AgentEvent> = events.iter().filter(is_of_a_turn).collect();
        prop_assert_eq!(of_the_turn, [
            &AgentEvent::TurnStarted,
            &AgentEvent::Text { message: 0, text: "present".to_owned() },
            &AgentEvent::TurnEnded { outcome: Outcome::Completed },
        ]);
        let session = AgentEvent::Session { id: "s1".to_owned() };
        prop_assert!(events.contains(&session), "by its own name: {:?}", events);
    }
}
