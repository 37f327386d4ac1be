//! OpenAI's chat and completions: chunks with choices, then `[DONE]`.

use crate::assemble::members::{Members, Parts, each, each_of, write_array};
use crate::assemble::{AssembleError, Step};
use crate::json::{Kind, Scanner};
use crate::watch::{TokenUsage, usage_of_member};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    Chat,
    Completions,
}

#[derive(Debug)]
pub(super) struct Chat {
    flavour: Flavour,
    /// What stands beside the choices: `id`, `model`, `created`, `timings`...
    top: Members,
    choices: Parts<Choice>,
    /// Usage in chunks without choices: one for the whole answer (OpenAI), or one for each choice (llama.cpp).
    usages_alone: Vec<String>,
    /// Usage in chunks with choices: the latest of each choice.
    usages_beside: Parts<String>,
}

#[derive(Debug, Default)]
struct Choice {
    /// `finish_reason`, and what else stands beside the delta. For completions `text` too.
    members: Members,
    message: Members,
    tool_calls: Parts<ToolCall>,
    logprobs: Option<Members>,
}

#[derive(Debug, Default)]
struct ToolCall {
    members: Members,
    function: Members,
}

impl Chat {
    pub(super) fn new(flavour: Flavour) -> Self {
        Self {
            flavour,
            top: Members::default(),
            choices: Parts::default(),
            usages_alone: Vec::new(),
            usages_beside: Parts::default(),
        }
    }

    pub(super) fn event(&mut self, data: &str) -> Result<Step, AssembleError> {
        if data == "[DONE]" {
            return Ok(Step::End);
        }
        let mut step = Step::More;
        let mut usage = None;
        let mut first_choice = None;
        each(data, |scanner, key| {
            match key {
                "choices" if scanner.kind()? == Kind::Array => scanner.array(|scanner, _| {
                    let index = self.choice(scanner)?;
                    first_choice.get_or_insert(index);
                    Ok::<(), AssembleError>(())
                })?,
                "usage" => usage = Some(scanner.raw()?).filter(|raw| raw.starts_with('{')),
                "error" => {
                    if scanner.raw()? != "null" {
                        step = Step::Error;
                    }
                }
                "object" => {
                    if scanner.raw()? == "\"error\"" {
                        step = Step::Error;
                    }
                }
                // Only streams have it.
                "prompt_progress" => {
                    scanner.skip(&mut ())?;
                }
                key => self.top.set(key, scanner.raw()?),
            }
            Ok(())
        })?;
        match (usage, first_choice) {
            (Some(usage), Some(index)) => usage.clone_into(self.usages_beside.at(index)?),
            (Some(usage), None) => self.usages_alone.push(usage.to_owned()),
            (None, _) => {}
        }
        Ok(step)
    }

    /// Takes one choice of a chunk and gives its index.
    fn choice(&mut self, scanner: &mut Scanner<'_>) -> Result<u64, AssembleError> {
        let mut again = scanner.clone();
        let index = index_of(scanner, 0)?;
        let choice = self.choices.at(index)?;
        each_of(&mut again, |scanner, key| match key {
            "index" => Ok(scanner.skip(&mut ()).map(|_| ())?),
            "delta" if scanner.kind()? == Kind::Object => choice.delta(scanner),
            "text" => choice.members.append_value("text", scanner),
            "logprobs" if scanner.kind()? == Kind::Object => choice.logprobs(scanner),
            key => {
                choice.members.set(key, scanner.raw()?);
                Ok(())
            }
        })?;
        Ok(index)
    }

    pub(super) fn finish(mut self) -> String {
        let flavour = self.flavour;
        for choice in self.choices.iter_mut() {
            choice.complete(flavour);
        }
        let usage = self.usage();
        let mut out = "{\"choices\":".to_owned();
        write_array(&mut out, self.choices.iter(), |out, (index, choice)| {
            choice.members.write(out);
            out.pop();
            out.push_str(&format!(",\"index\":{index}}}"));
        });
        out.push(',');
        let object = match flavour {
            Flavour::Chat => "\"chat.completion\"",
            Flavour::Completions => "\"text_completion\"",
        };
        self.top.set("object", object);
        if let Some(usage) = usage {
            self.top.set("usage", &usage);
        }
        out.push_str(&self.top.to_json()[1..]);
        out
    }

    /// One usage for the whole answer.
    fn usage(&mut self) -> Option<String> {
        let mut all = std::mem::take(&mut self.usages_alone);
        if all.is_empty() {
            all = self
                .usages_beside
                .iter()
                .map(|(_, usage)| usage.clone())
                .collect();
        }
        if all.len() < 2 {
            return all.pop();
        }
        let figures: Vec<TokenUsage> = all.iter().map(|usage| usage_of_member(usage)).collect();
        let read = figures.iter().filter_map(|usage| usage.tokens_in);
        let tokens_in = match self.flavour {
            // The choices of a chat have one prompt; several completions have one each.
            Flavour::Chat => read.max().unwrap_or(0),
            Flavour::Completions => read.sum(),
        };
        let tokens_out: u64 = figures.iter().filter_map(|usage| usage.tokens_out).sum();
        let total = tokens_in + tokens_out;
        Some(format!(
            "{{\"completion_tokens\":{tokens_out},\"prompt_tokens\":{tokens_in},\"total_tokens\":{total}}}"
        ))
    }
}

impl Choice {
    fn delta(&mut self, scanner: &mut Scanner<'_>) -> Result<(), AssembleError> {
        each_of(scanner, |scanner, key| match key {
            "content" | "reasoning_content" | "reasoning" | "refusal" => {
                self.message.append_value(key, scanner)
            }
            "tool_calls" if scanner.kind()? == Kind::Array => {
                scanner.array(|scanner, position| self.tool_call(scanner, position))
            }
            key => {
                self.message.set(key, scanner.raw()?);
                Ok(())
            }
        })
    }

    /// A piece of a tool call; one without an index is the one at its position.
    fn tool_call(&mut self, scanner: &mut Scanner<'_>, position: usize) -> Result<(), AssembleError> {
        let mut again = scanner.clone();
        let index = index_of(scanner, position as u64)?;
        let call = self.tool_calls.at(index)?;
        each_of(&mut again, |scanner, key| match key {
            "index" => Ok(scanner.skip(&mut ()).map(|_| ())?),
            "function" if scanner.kind()? == Kind::Object => each_of(scanner, |scanner, key| match key {
                "arguments" => call.function.append_value(key, scanner),
                key => {
                    call.function.set(key, scanner.raw()?);
                    Ok(())
                }
            }),
            key => {
                call.members.set(key, scanner.raw()?);
                Ok(())
            }
        })
    }

    fn logprobs(&mut self, scanner: &mut Scanner<'_>) -> Result<(), AssembleError> {
        let logprobs = self.logprobs.get_or_insert_default();
        each_of(scanner, |scanner, key| {
            let raw = scanner.raw()?;
            if raw.starts_with('[') {
                logprobs.extend(key, raw);
            } else {
                logprobs.set(key, raw);
            }
            Ok(())
        })
    }

    /// Puts the parts of the choice into its members.
    fn complete(&mut self, flavour: Flavour) {
        if let Some(logprobs) = &self.logprobs {
            self.members.set("logprobs", &logprobs.to_json());
        }
        if flavour == Flavour::Completions {
            self.members.set_missing("text", "\"\"");
            self.members.set_missing("logprobs", "null");
        } else {
            self.message.set_missing("role", "\"assistant\"");
            self.message.set_missing("content", "\"\"");
            if !self.tool_calls.is_empty() {
                let calls = self.tool_calls();
                self.message.set("tool_calls", &calls);
            }
            self.members.set("message", &self.message.to_json());
        }
        self.members.set_missing("finish_reason", "null");
    }

    fn tool_calls(&mut self) -> String {
        for call in self.tool_calls.iter_mut() {
            call.members.set_missing("type", "\"function\"");
            call.function.set_missing("arguments", "\"\"");
            call.members.set("function", &call.function.to_json());
        }
        let mut out = String::new();
        write_array(&mut out, self.tool_calls.iter(), |out, (_, call)| {
            call.members.write(out);
        });
        out
    }
}

/// Takes an object and gives its `index`, wherever in it that stands.
fn index_of(scanner: &mut Scanner<'_>, without: u64) -> Result<u64, AssembleError> {
    let mut index = without;
    each_of(scanner, |scanner, key| {
        let value = scanner.raw()?;
        if key == "index" {
            index = value.parse().unwrap_or(without);
        }
        Ok(())
    })?;
    Ok(index)
}
