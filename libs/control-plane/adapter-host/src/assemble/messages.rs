//! Anthropic's messages: `message_start`, blocks, `message_delta`, `message_stop`.

use crate::assemble::members::{Members, Parts, each, each_of, write_array};
use crate::assemble::{AssembleError, Step};
use crate::json::{Kind, Scanner};

#[derive(Debug, Default)]
pub(super) struct Messages {
    message: Members,
    usage: Members,
    blocks: Parts<Block>,
}

#[derive(Debug, Default)]
struct Block {
    members: Members,
    /// The pieces of `input`: a JSON text in a JSON string.
    input: Members,
}

impl Messages {
    pub(super) fn event(&mut self, name: &[u8], data: &str) -> Result<Step, AssembleError> {
        let mut kind = String::from_utf8_lossy(name).into_owned();
        let mut index = 0;
        each(data, |scanner, key| {
            match key {
                "type" if kind.is_empty() && scanner.kind()? == Kind::String => {
                    kind = scanner.string()?.decode().into_owned();
                }
                "index" => index = scanner.raw()?.parse().unwrap_or(0),
                _ => {
                    scanner.skip(&mut ())?;
                }
            }
            Ok(())
        })?;
        match kind.as_str() {
            "message_start" => self.start(data)?,
            "content_block_start" => self.blocks.at(index)?.start(data)?,
            "content_block_delta" => self.blocks.at(index)?.delta(data)?,
            "message_delta" => self.delta(data)?,
            "message_stop" => return Ok(Step::End),
            "error" => return Ok(Step::Error),
            _ => {}
        }
        Ok(Step::More)
    }

    fn start(&mut self, data: &str) -> Result<(), AssembleError> {
        let Self {
            message,
            usage,
            blocks,
        } = self;
        within(data, "message", |scanner, key| match key {
            "usage" if scanner.kind()? == Kind::Object => set_all(usage, scanner),
            "content" if scanner.kind()? == Kind::Array => {
                scanner.array(|scanner, index| set_all(&mut blocks.at(index as u64)?.members, scanner))
            }
            key => {
                message.set(key, scanner.raw()?);
                Ok(())
            }
        })
    }

    fn delta(&mut self, data: &str) -> Result<(), AssembleError> {
        each(data, |scanner, key| match key {
            "delta" if scanner.kind()? == Kind::Object => set_all(&mut self.message, scanner),
            "usage" if scanner.kind()? == Kind::Object => set_all(&mut self.usage, scanner),
            _ => Ok(scanner.skip(&mut ()).map(|_| ())?),
        })
    }

    pub(super) fn finish(mut self) -> String {
        for block in self.blocks.iter_mut() {
            block.complete();
        }
        let mut content = String::new();
        write_array(&mut content, self.blocks.iter(), |out, (_, block)| {
            block.members.write(out);
        });
        self.message.set_missing("type", "\"message\"");
        self.message.set_missing("role", "\"assistant\"");
        self.message.set("content", &content);
        self.message.set_missing("stop_reason", "null");
        self.message.set_missing("stop_sequence", "null");
        self.message.set("usage", &self.usage.to_json());
        self.message.to_json()
    }
}

impl Block {
    fn start(&mut self, data: &str) -> Result<(), AssembleError> {
        within(data, "content_block", |scanner, key| match key {
            "text" | "thinking" | "signature" => self.members.append_value(key, scanner),
            key => {
                self.members.set(key, scanner.raw()?);
                Ok(())
            }
        })
    }

    fn delta(&mut self, data: &str) -> Result<(), AssembleError> {
        within(data, "delta", |scanner, key| match key {
            "text" | "thinking" | "signature" => self.members.append_value(key, scanner),
            "partial_json" => self.input.append_value(key, scanner),
            "citation" => {
                self.members.extend("citations", &format!("[{}]", scanner.raw()?));
                Ok(())
            }
            _ => Ok(scanner.skip(&mut ()).map(|_| ())?),
        })
    }

    /// Gives a tool its input; pieces that are no JSON together count as none, as engines do it.
    fn complete(&mut self) {
        let pieces = self.input.take("partial_json");
        let input = pieces.and_then(|quoted| serde_json::from_str::<String>(&quoted).ok());
        match input.filter(|input| serde_json::from_str::<serde::de::IgnoredAny>(input).is_ok()) {
            Some(input) => self.members.set("input", &input),
            None if self.is_tool() => self.members.set_missing("input", "{}"),
            None => {}
        }
    }

    fn is_tool(&self) -> bool {
        self.members.is("type", "\"tool_use\"") || self.members.is("type", "\"server_tool_use\"")
    }
}

fn set_all(members: &mut Members, scanner: &mut Scanner<'_>) -> Result<(), AssembleError> {
    each_of(scanner, |scanner, key| {
        members.set(key, scanner.raw()?);
        Ok(())
    })
}

/// Calls `member` for each member of the object that is called `outer` in `data`.
fn within<'a>(
    data: &'a str,
    outer: &str,
    mut member: impl FnMut(&mut Scanner<'a>, &str) -> Result<(), AssembleError>,
) -> Result<(), AssembleError> {
    each(data, |scanner, key| {
        if key == outer && scanner.kind()? == Kind::Object {
            each_of(scanner, &mut member)
        } else {
            Ok(scanner.skip(&mut ()).map(|_| ())?)
        }
    })
}
