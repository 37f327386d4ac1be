//! What the corpus does not have: permissions, limits with a reset time, refusals, and ends of processes.

use serde_json::{Value, json};

use super::*;

const NOW_MS: u64 = 1_700_000_000_000;

fn dialogue(agent: &str, level: Level, settings: DialogueSettings) -> Dialogue {
    let profile = Profile::builtin(agent).expect("it is built in").unwrap();
    profile.dialogue(level, settings)
}

fn hot(agent: &str) -> Dialogue {
    let settings = DialogueSettings {
        workspace: "/workspace".to_owned(),
        ..DialogueSettings::default()
    };
    let mut dialogue = dialogue(agent, Level::Hot, settings);
    dialogue.start();
    dialogue
}

impl Dialogue {
    fn hears(&mut self, line: &Value) -> Reaction {
        self.line(NOW_MS, Source::Stdout, &line.to_string())
    }
}

fn outcome(reaction: &Reaction) -> &Outcome {
    match reaction.events.last() {
        Some(AgentEvent::TurnEnded { outcome }) => outcome,
        other => panic!("{other:?}"),
    }
}

fn failure(reaction: &Reaction) -> &Failure {
    match outcome(reaction) {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn ready_claude() -> Dialogue {
    let mut claude = hot("claude");
    claude.hears(&json!({
        "type": "control_response", "response": {"subtype": "success", "request_id": "initialize"},
    }));
    claude
}

fn ready_codex() -> Dialogue {
    let mut codex = hot("codex");
    codex.hears(&json!({"id": 1, "result": {}}));
    codex.hears(&json!({"id": 2, "result": {"thread": {"id": "t1"}}}));
    codex
}

fn ready_gemini() -> Dialogue {
    let mut gemini = hot("gemini");
    gemini.hears(&json!({"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": 1}}));
    gemini.hears(&json!({"jsonrpc": "2.0", "id": 2, "result": {"sessionId": "s1"}}));
    gemini
}

#[test]
fn a_prompt_waits_for_the_start_and_a_second_one_is_refused() {
    for agent in ["claude", "codex", "gemini"] {
        let mut starting = hot(agent);
        assert_eq!(
            starting.prompt(Turn::new("a")).unwrap(),
            Reaction::default(),
            "{agent}"
        );
        assert_eq!(starting.prompt(Turn::new("b")), Err(Refusal::Busy));
        assert_eq!(starting.new_conversation(), Err(Refusal::Busy));
        assert!(!starting.is_idle());
        // What waits can be taken back.
        assert_eq!(outcome(&starting.interrupt().unwrap()), &Outcome::Interrupted);
        assert_eq!(starting.interrupt(), Err(Refusal::Idle));
        // It is not lost when the process ends.
        starting.prompt(Turn::new("c")).unwrap();
        assert_eq!(failure(&starting.exited(None)).code, ErrorCode::WorkerReset);
        assert_eq!(starting.prompt(Turn::new("d")), Err(Refusal::Ended));
    }
    let mut codex = hot("codex");
    codex.prompt(Turn::new("waits")).unwrap();
    codex.hears(&json!({"id": 1, "result": {}}));
    let reaction = codex.hears(&json!({"id": 2, "result": {"thread": {"id": "t1"}}}));
    assert!(reaction.lines[0].contains("waits"), "{reaction:?}");
}

#[test]
fn permissions_are_answered_by_policy() {
    for (approval, allowed) in [(Approval::Allow, true), (Approval::Deny, false)] {
        let settings = DialogueSettings {
            approval,
            ..DialogueSettings::default()
        };
        let ask = |agent: &str, line: Value| {
            let mut dialogue = dialogue(agent, Level::Hot, settings.clone());
            let reaction = dialogue.hears(&line);
            assert!(
                matches!(reaction.events[0], AgentEvent::Ask { allowed: told, .. } if told == allowed),
                "{reaction:?}"
            );
            serde_json::from_str::<Value>(&reaction.lines[0]).unwrap()
        };
        let answer = ask(
            "claude",
            json!({"type": "control_request", "request_id": "q", "request": {
                "subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "ls"},
            }}),
        );
        let behaviour = if allowed { "allow" } else { "deny" };
        assert_eq!(answer["response"]["response"]["behavior"], behaviour);
        assert_eq!(answer["response"]["request_id"], "q");
        let answer = ask(
            "codex",
            json!({"id": 7, "method": "item/commandExecution/requestApproval", "params": {}}),
        );
        let decision = if allowed { "accept" } else { "decline" };
        assert_eq!(answer, json!({"id": 7, "result": {"decision": decision}}));
        let answer = ask(
            "gemini",
            json!({"jsonrpc": "2.0", "id": 8, "method": "session/request_permission", "params": {
                "toolCall": {"title": "ls"},
                "options": [{"optionId": "yes", "kind": "allow_once"}, {"optionId": "no", "kind": "reject_once"}],
            }}),
        );
        let option = if allowed { "yes" } else { "no" };
        assert_eq!(
            answer["result"]["outcome"],
            json!({"outcome": "selected", "optionId": option})
        );
    }
}

#[test]
fn anything_else_that_a_cli_asks_is_refused_and_kept() {
    for (agent, line) in [
        (
            "codex",
            json!({"id": 7, "method": "attestation/generate", "params": {}}),
        ),
        (
            "gemini",
            json!({"jsonrpc": "2.0", "id": 7, "method": "fs/read_text_file", "params": {}}),
        ),
        (
            "claude",
            json!({"type": "control_request", "request_id": "q", "request": {"subtype": "hook_callback"}}),
        ),
    ] {
        let reaction = hot(agent).hears(&line);
        assert!(reaction.lines[0].contains("not supported"), "{reaction:?}");
        assert!(
            matches!(reaction.events[0], AgentEvent::Raw { .. }),
            "{reaction:?}"
        );
    }
}

#[test]
fn reset_times_become_waits() {
    let mut claude = ready_claude();
    claude.prompt(Turn::new("a")).unwrap();
    let reaction = claude.hears(&json!({"type": "rate_limit_event", "rate_limit_info": {
        "status": "rejected", "resetsAt": NOW_MS / 1000 + 90, "rateLimitType": "five_hour",
    }}));
    assert!(
        matches!(
            reaction.events[0],
            AgentEvent::Limit {
                retry_after_ms: Some(90_000),
                ..
            }
        ),
        "{reaction:?}"
    );
    let reaction = claude.hears(&json!({
        "type": "result", "subtype": "success", "is_error": true, "api_error_status": 429, "result": "limit reached",
    }));
    let failed = failure(&reaction);
    assert_eq!(
        (failed.code, failed.retry_after_ms),
        (ErrorCode::AdmissionReject, Some(90_000))
    );

    let mut codex = ready_codex();
    codex.prompt(Turn::new("a")).unwrap();
    codex.hears(
        &json!({"method": "account/rateLimits/updated", "params": {"rateLimits": {
            "primary": {"usedPercent": 100, "resetsAt": NOW_MS / 1000 + 60},
            "secondary": {"usedPercent": 40, "resetsAt": NOW_MS / 1000 + 6000},
        }}}),
    );
    let reaction = codex.hears(
        &json!({"method": "turn/completed", "params": {"threadId": "t1", "turn": {
            "id": "u1", "status": "failed",
            "error": {"message": "You have hit your usage limit", "codexErrorInfo": "usageLimitExceeded"},
        }}}),
    );
    let failed = failure(&reaction);
    assert_eq!(
        (failed.code, failed.retry_after_ms),
        (ErrorCode::AdmissionReject, Some(60_000))
    );
}

#[test]
fn an_interrupt_before_codex_has_told_the_turn_is_sent_once_it_has() {
    let mut codex = ready_codex();
    codex.prompt(Turn::new("a")).unwrap();
    assert_eq!(codex.interrupt().unwrap(), Reaction::default());
    let reaction = codex.hears(&json!({"id": 3, "result": {"turn": {"id": "u1"}}}));
    let sent: Value = serde_json::from_str(&reaction.lines[0]).unwrap();
    assert_eq!(sent["method"], "turn/interrupt");
    assert_eq!(sent["params"], json!({"threadId": "t1", "turnId": "u1"}));
}

#[test]
fn a_session_that_cannot_be_had_fails_the_turn_and_the_next_one_tries_again() {
    let mut gemini = hot("gemini");
    gemini.prompt(Turn::new("a")).unwrap();
    gemini.hears(&json!({"jsonrpc": "2.0", "id": 1, "result": {}}));
    let refused = json!({"code": -32000, "message": "Authentication required"});
    let reaction = gemini.hears(&json!({"jsonrpc": "2.0", "id": 2, "error": refused}));
    // It takes prompts nevertheless: the one that waited asks for a session once more.
    assert!(reaction.events.contains(&AgentEvent::Ready), "{reaction:?}");
    assert!(reaction.lines[0].contains("session/new"), "{reaction:?}");
    let reaction = gemini.hears(&json!({"jsonrpc": "2.0", "id": 3, "error": refused}));
    let failed = failure(&reaction);
    assert_eq!(failed.code, ErrorCode::Unauthenticated);
    assert_eq!(
        failed.message,
        "gemini has no valid login: run `remuda login gemini` (Authentication required)"
    );
    let reaction = gemini.prompt(Turn::new("b")).unwrap();
    assert!(reaction.lines[0].contains("session/new"), "{reaction:?}");
}

#[test]
fn a_model_is_told_when_it_changes() {
    let with_model = |prompt: &str| Turn {
        model: Some("m2".to_owned()),
        ..Turn::new(prompt)
    };
    let mut claude = ready_claude();
    let reaction = claude.prompt(with_model("a")).unwrap();
    assert!(
        reaction.lines[0].contains("set_model") && reaction.lines[1].contains("\"a\""),
        "{reaction:?}"
    );
    claude.hears(&json!({"type": "result", "is_error": false, "result": "x"}));
    assert_eq!(claude.prompt(with_model("b")).unwrap().lines.len(), 1);

    let mut gemini = ready_gemini();
    let reaction = gemini.prompt(with_model("a")).unwrap();
    assert!(reaction.lines[0].contains("session/set_model"), "{reaction:?}");
    let reaction = gemini.hears(&json!({"id": 3, "error": {"code": -32602, "message": "no such model"}}));
    assert!(
        matches!(
            reaction.events[0],
            AgentEvent::Refused {
                what: "set_model",
                ..
            }
        ),
        "{reaction:?}"
    );
    // It must not be answered by another model.
    assert_eq!(failure(&reaction).code, ErrorCode::InvalidParams);
    let turn: Value = serde_json::from_str(&ready_codex().prompt(with_model("a")).unwrap().lines[0]).unwrap();
    assert_eq!(turn["params"]["model"], "m2");
}

#[test]
fn another_thread_says_nothing_for_this_one() {
    let mut codex = ready_codex();
    codex.prompt(Turn::new("a")).unwrap();
    let reaction = codex.hears(&json!({"method": "item/agentMessage/delta", "params": {
        "threadId": "other", "turnId": "u9", "itemId": "i", "delta": "not this",
    }}));
    assert!(
        !reaction
            .events
            .iter()
            .any(|event| matches!(event, AgentEvent::Text { .. })),
        "{reaction:?}"
    );
}

#[test]
fn what_an_exit_means_is_told() {
    let mut gemini = dialogue("gemini", Level::OneShot, DialogueSettings::default());
    gemini.start();
    let reaction = gemini.prompt(Turn::new("a")).unwrap();
    assert!(reaction.close_stdin, "it begins when its input ends");
    let failed = gemini.exited(Some(41));
    assert_eq!(
        failure(&failed),
        &Failure {
            code: ErrorCode::Unauthenticated,
            message: "gemini: it has no login: run `remuda login gemini`".to_owned(),
            retry_after_ms: None,
        }
    );
    let mut codex = ready_codex();
    codex.prompt(Turn::new("a")).unwrap();
    codex.line(NOW_MS, Source::Stderr, "thread 'main' panicked at the disco");
    let failed = codex.exited(Some(101));
    assert_eq!(failure(&failed).code, ErrorCode::WorkerReset);
    assert_eq!(
        failure(&failed).message,
        "codex ended with exit code 101 in the middle of a turn: thread 'main' panicked at the disco"
    );
    // One prompt only, and the CLI knows no way but a signal: the turn is interrupted when the process is gone.
    let mut codex = dialogue("codex", Level::OneShot, DialogueSettings::default());
    codex.start();
    codex.prompt(Turn::new("a")).unwrap();
    assert_eq!(codex.interrupt(), Err(Refusal::Impossible));
    assert_eq!(outcome(&codex.exited(None)), &Outcome::Interrupted);
}

#[test]
fn long_outputs_are_cut_and_say_so() {
    let mut claude = ready_claude();
    claude.prompt(Turn::new("a")).unwrap();
    let output = format!("{}end", "ä".repeat(event::TOOL_OUTPUT_BYTES_MAX));
    let reaction = claude.hears(&json!({"type": "user", "message": {"content": [
        {"type": "tool_result", "tool_use_id": "t", "content": output},
    ]}}));
    let AgentEvent::ToolFinished { output: kept, .. } = &reaction.events[0] else {
        panic!("{reaction:?}");
    };
    assert!(kept.text.len() <= event::TOOL_OUTPUT_BYTES_MAX && kept.text.ends_with("end"));
    assert_eq!(kept.text.len() + kept.dropped_bytes, output.len());
}

#[test]
fn a_line_that_is_too_long_is_cut_and_noted() {
    let mut splitter = LineSplitter::default();
    let mut lines = Vec::new();
    let long = "x".repeat(LINE_BYTES_MAX + 4096);
    for piece in format!("{long}\nnext\nlast").as_bytes().chunks(70_001) {
        splitter.push(piece, |line| lines.push(line.to_owned()));
    }
    splitter.finish(|line| lines.push(line.to_owned()));
    assert_eq!(lines[1..], ["next", "last"]);
    assert_eq!(lines[0].len(), LINE_BYTES_MAX + 1);
    let reaction = ready_claude().line(NOW_MS, Source::Stdout, &lines[0]);
    let AgentEvent::Raw { line, note, .. } = &reaction.events[0] else {
        panic!("{reaction:?}");
    };
    assert_eq!((line.len(), note.is_some()), (RAW_BYTES_MAX, true));
}

#[test]
fn kinds_of_failures() {
    for (status, message, expect) in [
        (Some(401), "", ErrorCode::Unauthenticated),
        (Some(429), "", ErrorCode::AdmissionReject),
        (Some(404), "no such model", ErrorCode::InvalidParams),
        (Some(529), "overloaded", ErrorCode::WorkerReset),
        (Some(504), "", ErrorCode::DecodeTimeout),
        (
            None,
            "Not logged in · Please run /login",
            ErrorCode::Unauthenticated,
        ),
        (
            None,
            "You exceeded your current quota",
            ErrorCode::AdmissionReject,
        ),
        (None, "the request timed out", ErrorCode::DecodeTimeout),
        (None, "terminated", ErrorCode::WorkerReset),
    ] {
        assert_eq!(failure::code(status, message), expect, "{status:?} {message}");
    }
}
