//! Transcripts that do not change from run to run: paths, ids, times and the machine's name are replaced.

use std::collections::BTreeMap;

use serde_json::Value;

use super::golden::{Entry, Golden};

/// Lines longer than this lose their lists of tools, commands and models, which nothing here reads.
const LONG_BYTES: usize = 3000;

/// What such lists are called.
const LISTS: [&str; 14] = [
    "commands",
    "availableCommands",
    "tools",
    "models",
    "availableModels",
    "configOptions",
    "slash_commands",
    "agents",
    "skills",
    "plugins",
    "availableModes",
    "authMethods",
    "output_styles",
    "mcp_servers",
];

/// Replaces what differs between two recordings.
pub(crate) fn normal(golden: &Golden, names: &[(String, &'static str)]) -> Golden {
    let mut ids = Ids::default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut text = |text: &str| {
        let mut text = text.to_owned();
        for (from, to) in names {
            text = text.replace(from, to);
        }
        ids.replace(&text.replace(&format!("\"{host}\""), "\"host\""))
    };
    let mut normal = golden.input();
    normal.settings.workspace = text(&golden.settings.workspace);
    normal.settings.session = golden.settings.session.as_deref().map(&mut text);
    for entry in &mut normal.entries {
        if let Entry::Line(_, line) = entry {
            *line = text(&shorter(line));
        }
    }
    normal
}

fn shorter(line: &str) -> String {
    let value = (line.len() >= LONG_BYTES).then(|| serde_json::from_str::<Value>(line).ok());
    match value.flatten() {
        Some(mut value) => {
            shorten(&mut value);
            value.to_string()
        }
        None => line.to_owned(),
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if LISTS.contains(&name.as_str()) && member.is_array() {
                    *member = Value::Array(Vec::new());
                } else {
                    shorten(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        _ => {}
    }
}

/// Where Claude Code has a socket named after its process.
const SOCKETS: &str = "/cc-socks/";

fn socket(text: &str) -> Option<usize> {
    let name = text.strip_prefix(SOCKETS)?;
    Some(SOCKETS.len() + leading(name, |byte| byte.is_ascii_digit()))
}

/// Ids in the order of their coming.
#[derive(Default)]
struct Ids(BTreeMap<String, usize>);

impl Ids {
    fn replace(&mut self, text: &str) -> String {
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let used = if let Some(length) = socket(rest) {
                replaced.push_str(SOCKETS);
                replaced.push('1');
                length
            } else if let Some(id) = uuid(rest) {
                replaced.push_str(&format!("00000000-0000-4000-8000-{:012}", self.number(id)));
                id.len()
            } else if let Some(id) = prefixed(rest) {
                replaced.push_str(&format!("{}_{:026}", &id[..3], self.number(id)));
                id.len()
            } else if is_date(rest) {
                replaced.push_str("2026-01-01T00:00:00");
                19
            } else if first.is_ascii_digit() {
                let digits = leading(rest, |byte| byte.is_ascii_digit());
                if digits >= 10 {
                    replaced.push_str(&format!("17{}", "0".repeat(digits - 2)));
                } else {
                    replaced.push_str(&rest[..digits]);
                }
                digits
            } else {
                replaced.push(first);
                first.len_utf8()
            };
            rest = &rest[used..];
        }
        replaced
    }

    fn number(&mut self, id: &str) -> usize {
        let next = self.0.len() + 1;
        *self.0.entry(id.to_owned()).or_insert(next)
    }
}

fn leading(text: &str, is: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| is(*byte)).count()
}

fn uuid(text: &str) -> Option<&str> {
    let id = text.get(..36)?;
    let right = id.bytes().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    right.then_some(id)
}

/// `ses_...`, `msg_...` and such, of opencode.
fn prefixed(text: &str) -> Option<&str> {
    let prefix = text.get(..4)?;
    if !matches!(prefix, "ses_" | "msg_" | "prt_") {
        return None;
    }
    let length = leading(&text[4..], |byte| byte.is_ascii_alphanumeric());
    (length >= 20).then(|| &text[..4 + length])
}

fn is_date(text: &str) -> bool {
    let like = "0000-00-00T00:00:00";
    text.get(..like.len()).is_some_and(|date| {
        date.bytes().zip(like.bytes()).all(|(byte, like)| match like {
            b'0' => byte.is_ascii_digit(),
            like => byte == like,
        })
    })
}
