//! A stand-in for an agent's CLI, for what a real one is too slow, too large or too random: it speaks Claude Code's
//! `stream-json` and asks no model.
//!
//! | prompt | answer |
//! |---|---|
//! | `when` | when the first byte of this prompt was read, and of its first input ever: nanoseconds of the monotonic clock |
//! | `flood N` | N numbered lines of 1000 bytes, one event each |

use std::io::{self, Read as _, StdoutLock, Write as _};

use anyhow::{Context as _, Result};
use fake_agent::line_of_flood;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut stdin = io::stdin().lock();
    let mut agent = Agent {
        out: io::stdout().lock(),
        session: 0,
        first: None,
    };
    let mut read = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        let count = stdin.read(&mut piece)?;
        let now = fake_agent::monotonic_ns();
        if count == 0 {
            return Ok(());
        }
        agent.first.get_or_insert(now);
        read.extend_from_slice(&piece[..count]);
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            agent.hear(&serde_json::from_slice(&line)?, now)?;
        }
    }
}

struct Agent {
    out: StdoutLock<'static>,
    session: u32,
    /// When the first byte came.
    first: Option<u64>,
}

impl Agent {
    fn hear(&mut self, line: &Value, now: u64) -> Result<()> {
        if line["type"] == "control_request" {
            let response = json!({"subtype": "success", "request_id": line["request_id"], "response": {}});
            return self.say(&json!({"type": "control_response", "response": response}));
        }
        let prompt = line["message"]["content"][0]["text"]
            .as_str()
            .context("a prompt")?;
        if prompt == "/clear" {
            self.session += 1;
        }
        self.say(
            &json!({"type": "system", "subtype": "init", "session_id": format!("session-{}", self.session)}),
        )?;
        match prompt.split_once(' ').unwrap_or((prompt, "")) {
            ("/clear", _) => {}
            ("when", _) => self.text(&format!("{now} {}", self.first.unwrap_or(now)))?,
            ("flood", count) => {
                for number in 0..count.parse()? {
                    self.text(&line_of_flood(number))?;
                }
            }
            _ => self.text("201")?,
        }
        self.say(
            &json!({"type": "result", "subtype": "success", "is_error": false, "result": "",
            "usage": {"input_tokens": 1, "output_tokens": 1}}),
        )
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let delta = json!({"type": "text_delta", "text": text});
        let event = json!({"type": "content_block_delta", "index": 0, "delta": delta});
        self.say(&json!({"type": "stream_event", "event": event}))
    }

    fn say(&mut self, line: &Value) -> Result<()> {
        writeln!(self.out, "{line}")?;
        Ok(self.out.flush()?)
    }
}
