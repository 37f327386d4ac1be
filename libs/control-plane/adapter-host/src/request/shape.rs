//! The shapes of the members that are checked.
//!
//! Each function takes one value from the scanner. Faults name the member relative to that value; who calls adds what
//! is around it.

use crate::json::{Kind, Leaves, RawText, Scanner};
use crate::prefix::{Conversation, TextHasher};
use crate::request::{Fault, tools};

/// What is known about pictures, sound and files in a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Media {
    /// Whether they may stand there.
    pub(crate) allowed: bool,
    /// Whether one stands there.
    pub(crate) found: bool,
}

impl Media {
    fn note(&mut self, kind: &str) -> Result<(), Fault> {
        let is_media = matches!(
            kind,
            "image_url"
                | "image"
                | "input_image"
                | "input_audio"
                | "input_video"
                | "video_url"
                | "file"
                | "input_file"
        );
        if is_media && !self.allowed {
            return Err(Fault::at(
                "",
                format!("is of type {kind}: this model takes text only"),
            ));
        }
        self.found |= is_media;
        Ok(())
    }
}

pub(super) fn expect(
    scanner: &mut Scanner<'_>,
    kind: Kind,
    path: &str,
    problem: &'static str,
) -> Result<(), Fault> {
    if scanner.kind()? == kind {
        Ok(())
    } else {
        Err(Fault::at(path, problem))
    }
}

/// A string.
pub(super) fn text<'a>(scanner: &mut Scanner<'a>, path: &str) -> Result<RawText<'a>, Fault> {
    expect(scanner, Kind::String, path, "must be a string")?;
    Ok(scanner.string()?)
}

/// A string or null.
pub(super) fn text_or_null<'a>(scanner: &mut Scanner<'a>, path: &str) -> Result<Option<RawText<'a>>, Fault> {
    if scanner.kind()? == Kind::Null {
        scanner.literal("null")?;
        return Ok(None);
    }
    text(scanner, path).map(Some)
}

/// A boolean; null counts as false.
pub(super) fn boolean_or_null(scanner: &mut Scanner<'_>, path: &str) -> Result<bool, Fault> {
    match scanner.kind()? {
        Kind::Bool => Ok(scanner.boolean()?),
        Kind::Null => {
            scanner.literal("null")?;
            Ok(false)
        }
        _ => Err(Fault::at(path, "must be true or false")),
    }
}

/// A whole number; null and negative numbers mean that there is no bound.
pub(super) fn count_or_null(scanner: &mut Scanner<'_>, path: &str) -> Result<Option<u64>, Fault> {
    match scanner.kind()? {
        Kind::Number => {
            let text = scanner.number()?;
            if let Ok(count) = text.parse() {
                return Ok(Some(count));
            }
            match text.parse::<f64>() {
                Ok(number) if number.fract() == 0.0 => Ok(format!("{number:.0}").parse().ok()),
                _ => Err(Fault::at(path, "must be a whole number")),
            }
        }
        Kind::Null => {
            scanner.literal("null")?;
            Ok(None)
        }
        _ => Err(Fault::at(path, "must be a whole number")),
    }
}

/// `stream_options`; gives `include_usage`.
pub(super) fn stream_options(scanner: &mut Scanner<'_>) -> Result<bool, Fault> {
    if scanner.kind()? == Kind::Null {
        scanner.literal("null")?;
        return Ok(false);
    }
    expect(scanner, Kind::Object, "stream_options", "must be an object")?;
    let mut include_usage = false;
    scanner.object(|scanner, key| {
        if key.decode() == "include_usage" {
            include_usage = boolean_or_null(scanner, "stream_options.include_usage")?;
        } else {
            scanner.skip(&mut ())?;
        }
        Ok::<(), Fault>(())
    })?;
    Ok(include_usage)
}

/// `messages`, of OpenAI's chat or of Anthropic: at least one.
pub(super) fn messages(scanner: &mut Scanner<'_>, media: &mut Media) -> Result<Conversation, Fault> {
    conversation(scanner, "messages", |scanner, hasher| {
        message(scanner, hasher, media)
    })
}

/// `input` of a Responses request: at least one item, of whatever type.
pub(super) fn items(scanner: &mut Scanner<'_>, media: &mut Media) -> Result<Conversation, Fault> {
    if !matches!(scanner.kind()?, Kind::Array) {
        return Err(Fault::at("input", "must be a string or an array"));
    }
    conversation(scanner, "input", |scanner, hasher| item(scanner, hasher, media))
}

fn conversation<'a>(
    scanner: &mut Scanner<'a>,
    path: &str,
    mut element: impl FnMut(&mut Scanner<'a>, &mut TextHasher) -> Result<(), Fault>,
) -> Result<Conversation, Fault> {
    expect(scanner, Kind::Array, path, "must be an array")?;
    let mut conversation = Conversation::default();
    let mut is_empty = true;
    scanner.array(|scanner, index| {
        is_empty = false;
        expect(scanner, Kind::Object, "", "must be an object")
            .and_then(|()| element(scanner, conversation.message()))
            .map_err(|fault| fault.inside(|| format!("{path}[{index}]")))?;
        conversation.end_message();
        Ok::<(), Fault>(())
    })?;
    if is_empty {
        Err(Fault::at(path, "must not be empty"))
    } else {
        Ok(conversation)
    }
}

fn message(scanner: &mut Scanner<'_>, hasher: &mut TextHasher, media: &mut Media) -> Result<(), Fault> {
    let (mut has_role, mut has_content, mut is_assistant) = (false, false, false);
    scanner.object(|scanner, key| {
        match &*key.decode() {
            "role" => {
                let role = text(scanner, "role")?.inner();
                hasher.string(role);
                is_assistant = role == "assistant";
                has_role = true;
            }
            "content" => {
                content(scanner, "content", hasher, media)?;
                has_content = true;
            }
            "tool_calls" => tools::calls(scanner, hasher)?,
            key @ ("name" | "tool_call_id" | "reasoning_content") => {
                if let Some(text) = text_or_null(scanner, key)? {
                    hasher.string(text.inner());
                }
            }
            key => other(scanner, key, hasher)?,
        }
        Ok::<(), Fault>(())
    })?;
    if !has_role {
        return Err(Fault::at("role", "is required"));
    }
    if !has_content && !is_assistant {
        return Err(Fault::at("content", "is required"));
    }
    Ok(())
}

fn item(scanner: &mut Scanner<'_>, hasher: &mut TextHasher, media: &mut Media) -> Result<(), Fault> {
    scanner.object(|scanner, key| match &*key.decode() {
        key @ ("content" | "output") => content(scanner, key, hasher, media),
        key => other(scanner, key, hasher),
    })
}

/// A member that is not checked.
pub(super) fn other(scanner: &mut Scanner<'_>, key: &str, hasher: &mut TextHasher) -> Result<(), Fault> {
    if hasher.wants(key) {
        scanner.skip(hasher)?;
    } else {
        scanner.skip(&mut ())?;
    }
    Ok(())
}

/// A string, null, or an array of parts.
fn content(
    scanner: &mut Scanner<'_>,
    path: &str,
    hasher: &mut TextHasher,
    media: &mut Media,
) -> Result<(), Fault> {
    match scanner.kind()? {
        Kind::String => hasher.string(scanner.string()?.inner()),
        Kind::Null => scanner.literal("null")?,
        Kind::Array => scanner.array(|scanner, index| {
            part(scanner, hasher, media).map_err(|fault| fault.inside(|| format!("{path}[{index}]")))
        })?,
        // A tool of Responses may give an object back.
        Kind::Object if path == "output" => {
            scanner.skip(hasher)?;
        }
        _ => return Err(Fault::at(path, "must be a string or an array")),
    }
    Ok(())
}

/// A content part (OpenAI) or block (Anthropic). Anthropic's `tool_result` has content of its own.
fn part(scanner: &mut Scanner<'_>, hasher: &mut TextHasher, media: &mut Media) -> Result<(), Fault> {
    expect(scanner, Kind::Object, "", "must be an object")?;
    let (mut kind, mut has_text) = (None, false);
    scanner.object(|scanner, key| {
        match &*key.decode() {
            "type" => {
                let text = text(scanner, "type")?.decode();
                media.note(&text)?;
                kind = Some(text);
            }
            "text" => {
                hasher.string(text(scanner, "text")?.inner());
                has_text = true;
            }
            "content" if matches!(scanner.kind()?, Kind::String | Kind::Array) => {
                content(scanner, "content", hasher, media)?;
            }
            key => other(scanner, key, hasher)?,
        }
        Ok::<(), Fault>(())
    })?;
    match kind.as_deref() {
        None => Err(Fault::at("type", "is required")),
        Some("text" | "input_text" | "output_text") if !has_text => Err(Fault::at("text", "is required")),
        Some(_) => Ok(()),
    }
}

/// `prompt` or `input`: a string, tokens, or an array of such; gives the text when it is one string.
pub(super) fn prompt<'a>(scanner: &mut Scanner<'a>, path: &str) -> Result<Option<&'a str>, Fault> {
    match scanner.kind()? {
        Kind::String => return Ok(Some(scanner.string()?.inner())),
        Kind::Object => {
            scanner.skip(&mut ())?;
        }
        Kind::Array => {
            let mut is_empty = true;
            scanner.array(|scanner, index| {
                is_empty = false;
                prompt_element(scanner).map_err(|fault| fault.inside(|| format!("{path}[{index}]")))
            })?;
            if is_empty {
                return Err(Fault::at(path, "must not be empty"));
            }
        }
        _ => return Err(Fault::at(path, "must be a string or an array")),
    }
    Ok(None)
}

/// A text, a token, an array of those, or an object that an engine knows what to do with.
fn prompt_element(scanner: &mut Scanner<'_>) -> Result<(), Fault> {
    match scanner.kind()? {
        Kind::Array => scanner.array(|scanner, index| {
            if !matches!(scanner.kind()?, Kind::Number | Kind::String) {
                return Err(Fault::at(format!("[{index}]"), "must be a token"));
            }
            Ok(scanner.skip(&mut ()).map(|_| ())?)
        }),
        Kind::Bool | Kind::Null => Err(Fault::at("", "must be a string, a token or an array of tokens")),
        Kind::String | Kind::Number | Kind::Object => Ok(scanner.skip(&mut ()).map(|_| ())?),
    }
}

/// The documents to rank: strings, or objects with a text.
pub(super) fn documents(scanner: &mut Scanner<'_>, path: &str) -> Result<(), Fault> {
    expect(scanner, Kind::Array, path, "must be an array")?;
    let mut is_empty = true;
    scanner.array(|scanner, index| {
        is_empty = false;
        if !matches!(scanner.kind()?, Kind::String | Kind::Object) {
            return Err(Fault::at(
                format!("{path}[{index}]"),
                "must be a string or an object",
            ));
        }
        scanner.skip(&mut ())?;
        Ok(())
    })?;
    if is_empty {
        Err(Fault::at(path, "must not be empty"))
    } else {
        Ok(())
    }
}
