//! Answers, in the four dialects.

mod anthropic;
mod chat;
mod gemini;
mod responses;

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{Dialect, Seen, Step};

/// One thing that happens on a stream.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes of one event.
    Bytes(String),
    /// A pause.
    Wait(Duration),
    /// The connection ends.
    Cut,
    /// Nothing more comes.
    Hang,
}

/// How a turn's answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Short,
    Cut,
    Hang,
}

/// What an answer says, without a dialect.
#[derive(Debug)]
struct Said {
    pieces: Vec<String>,
    interval: Duration,
    call: Option<Call>,
    end: End,
}

/// A tool call, as the asking CLI's tool wants it.
#[derive(Debug)]
struct Call {
    name: String,
    arguments: Value,
    /// OpenAI's custom tools take text instead of an object.
    text: Option<String>,
}

/// The events of a streamed answer.
pub(crate) fn stream(asked: &Seen, step: &Step, number: u64) -> Vec<Piece> {
    let said = said(asked, step);
    match asked.dialect {
        Dialect::Messages => anthropic::stream(asked, &said, number),
        Dialect::Responses => responses::stream(asked, &said, number),
        Dialect::ChatCompletions => chat::stream(asked, &said, number),
        Dialect::GenerateContent => gemini::stream(asked, &said, number),
    }
}

/// An answer in one piece.
pub(crate) fn whole(asked: &Seen, step: &Step, number: u64) -> Value {
    let said = said(asked, step);
    match asked.dialect {
        Dialect::Messages => anthropic::whole(asked, &said, number),
        Dialect::Responses => responses::whole(asked, &said, number),
        Dialect::ChatCompletions => chat::whole(asked, &said, number),
        Dialect::GenerateContent => gemini::whole(asked, &said, number),
    }
}

/// A refusal, in the dialect's own shape.
pub(crate) fn error(dialect: Dialect, status: StatusCode) -> Value {
    let message = match status.as_u16() {
        401 => "invalid key (scripted)",
        429 => "too many requests (scripted)",
        529 | 503 => "overloaded (scripted)",
        _ => "failed (scripted)",
    };
    let kind = match status.as_u16() {
        401 => "authentication_error",
        429 => "rate_limit_error",
        529 | 503 => "overloaded_error",
        400 => "invalid_request_error",
        _ => "api_error",
    };
    match dialect {
        Dialect::Messages => json!({"type": "error", "error": {"type": kind, "message": message}}),
        Dialect::Responses | Dialect::ChatCompletions => {
            json!({"error": {"message": message, "type": kind, "param": null, "code": kind}})
        }
        Dialect::GenerateContent => {
            let status_name = match status.as_u16() {
                401 => "UNAUTHENTICATED",
                429 => "RESOURCE_EXHAUSTED",
                _ => "UNAVAILABLE",
            };
            json!({"error": {"code": status.as_u16(), "message": message, "status": status_name}})
        }
    }
}

fn said(asked: &Seen, step: &Step) -> Said {
    let plain = |pieces: &[String], end| Said {
        pieces: pieces.to_vec(),
        interval: Duration::ZERO,
        call: None,
        end,
    };
    match step {
        Step::Text { pieces, interval_ms } => Said {
            interval: Duration::from_millis(*interval_ms),
            ..plain(pieces, End::Done)
        },
        Step::Short { pieces } => plain(pieces, End::Short),
        Step::Cut { pieces } => plain(pieces, End::Cut),
        Step::Hang { pieces } => plain(pieces, End::Hang),
        Step::Shell { command } => call(asked, shell(asked, command)),
        Step::Write { path, content } => call(asked, write(asked, path, content)),
        Step::Status { .. } => plain(&[], End::Done),
    }
}

fn call(asked: &Seen, call: Option<Call>) -> Said {
    let pieces = match &call {
        Some(_) => Vec::new(),
        None => vec![format!("no tool for this among {:?}", asked.tools)],
    };
    Said {
        pieces,
        interval: Duration::ZERO,
        call,
        end: End::Done,
    }
}

/// The shell tool of whichever CLI asks.
fn shell(asked: &Seen, command: &str) -> Option<Call> {
    let name = asked.tool(&[
        "Bash",
        "bash",
        "run_shell_command",
        "exec_command",
        "shell_command",
        "shell",
        "exec",
    ])?;
    let mut text = None;
    let arguments = match name {
        "exec_command" => json!({"cmd": command}),
        "shell" => json!({"command": ["sh", "-c", command]}),
        "exec" => {
            text = Some(format!(
                "text(await tools.exec_command({}))",
                json!({"cmd": command})
            ));
            Value::Null
        }
        _ => json!({"command": command, "description": "scripted"}),
    };
    Some(Call {
        name: name.to_owned(),
        arguments,
        text,
    })
}

/// The tool that writes files of whichever CLI asks.
fn write(asked: &Seen, path: &str, content: &str) -> Option<Call> {
    let name = asked.tool(&["Write", "write", "write_file", "apply_patch", "exec"])?;
    let patch = || {
        let lines: Vec<String> = content.lines().map(|line| format!("+{line}")).collect();
        format!(
            "*** Begin Patch\n*** Add File: {path}\n{}\n*** End Patch",
            lines.join("\n")
        )
    };
    let mut text = None;
    let arguments = match name {
        "write" => json!({"filePath": path, "content": content}),
        "apply_patch" => {
            text = Some(patch());
            Value::Null
        }
        "exec" => {
            text = Some(format!("text(await tools.apply_patch({}))", json!(patch())));
            Value::Null
        }
        _ => json!({"file_path": path, "content": content}),
    };
    Some(Call {
        name: name.to_owned(),
        arguments,
        text,
    })
}

/// A server-sent event with a name.
fn named(data: &Value) -> Piece {
    let name = data["type"].as_str().unwrap_or("message");
    Piece::Bytes(format!("event: {name}\ndata: {data}\n\n"))
}

/// A server-sent event without a name.
fn data(data: &Value) -> Piece {
    Piece::Bytes(format!("data: {data}\n\n"))
}

impl Said {
    /// The texts, each as one event, with the pauses between them.
    fn texts(&self, event: impl Fn(&str) -> Piece) -> Vec<Piece> {
        let mut events = Vec::new();
        for (index, piece) in self.pieces.iter().enumerate() {
            if index > 0 && !self.interval.is_zero() {
                events.push(Piece::Wait(self.interval));
            }
            events.push(event(piece));
        }
        events
    }

    /// Whether the stream does not end as it should; then its rest is added.
    fn breaks(&self, events: &mut Vec<Piece>) -> bool {
        match self.end {
            End::Done => return false,
            End::Short => {}
            End::Cut => events.push(Piece::Cut),
            End::Hang => events.push(Piece::Hang),
        }
        true
    }

    fn text(&self) -> String {
        self.pieces.concat()
    }

    fn tokens_out(&self) -> usize {
        self.pieces.len().max(1)
    }
}
