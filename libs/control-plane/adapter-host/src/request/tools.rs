//! Tools that a model may call, and its calls of them.

use std::borrow::Cow;

use pool_registry_types::Dialect;

use crate::json::{Kind, Leaves, Scanner};
use crate::prefix::TextHasher;
use crate::request::Fault;
use crate::request::shape::{expect, other, text, text_or_null};

/// `tools`; gives the hash of their texts, or none when there are none.
///
/// The dialects wrap a function differently: chat in an object called `function`, the others not at all. Of tools of
/// other types nothing is known but that they are objects.
pub(super) fn list(dialect: Dialect, scanner: &mut Scanner<'_>) -> Result<Option<u64>, Fault> {
    if scanner.kind()? == Kind::Null {
        scanner.literal("null")?;
        return Ok(None);
    }
    expect(scanner, Kind::Array, "tools", "must be an array")?;
    let mut hasher = TextHasher::default();
    let mut is_empty = true;
    scanner.array(|scanner, index| {
        is_empty = false;
        tool(dialect, scanner, &mut hasher).map_err(|fault| fault.inside(|| format!("tools[{index}]")))
    })?;
    Ok((!is_empty).then(|| hasher.value()))
}

fn tool(dialect: Dialect, scanner: &mut Scanner<'_>, hasher: &mut TextHasher) -> Result<(), Fault> {
    let tool = Described::read(scanner, hasher)?;
    match (dialect, tool.kind.as_deref()) {
        (Dialect::ChatCompletions | Dialect::Responses, None) => Err(Fault::at("type", "is required")),
        (Dialect::ChatCompletions, Some("function")) if !tool.has_function => {
            Err(Fault::at("function", "is required"))
        }
        (Dialect::Responses, Some("function")) if !tool.has_name => Err(Fault::at("name", "is required")),
        _ => Ok(()),
    }
}

/// `tool_calls` of an assistant's message.
pub(super) fn calls(scanner: &mut Scanner<'_>, hasher: &mut TextHasher) -> Result<(), Fault> {
    if scanner.kind()? == Kind::Null {
        return Ok(scanner.literal("null")?);
    }
    expect(scanner, Kind::Array, "tool_calls", "must be an array")?;
    scanner.array(|scanner, index| {
        call(scanner, hasher).map_err(|fault| fault.inside(|| format!("tool_calls[{index}]")))
    })
}

fn call(scanner: &mut Scanner<'_>, hasher: &mut TextHasher) -> Result<(), Fault> {
    let call = Described::read(scanner, hasher)?;
    match call.kind.as_deref() {
        None => Err(Fault::at("type", "is required")),
        Some("function") if !call.has_function => Err(Fault::at("function", "is required")),
        Some("function") if !call.has_arguments => Err(Fault::at("function.arguments", "is required")),
        Some(_) => Ok(()),
    }
}

/// What stands in a tool or a call.
#[derive(Default)]
struct Described<'a> {
    kind: Option<Cow<'a, str>>,
    has_name: bool,
    has_function: bool,
    /// The function in it has arguments.
    has_arguments: bool,
}

impl<'a> Described<'a> {
    fn read(scanner: &mut Scanner<'a>, hasher: &mut TextHasher) -> Result<Self, Fault> {
        expect(scanner, Kind::Object, "", "must be an object")?;
        let mut described = Self::default();
        scanner.object(|scanner, key| {
            match &*key.decode() {
                "type" => described.kind = text_or_null(scanner, "type")?.map(|kind| kind.decode()),
                "name" => {
                    if let Some(name) = text_or_null(scanner, "name")? {
                        hasher.string(name.inner());
                        described.has_name = true;
                    }
                }
                "function" => {
                    described.has_function = true;
                    described.has_arguments =
                        function(scanner, hasher).map_err(|fault| fault.inside(|| "function".to_owned()))?;
                }
                key => other(scanner, key, hasher)?,
            }
            Ok::<(), Fault>(())
        })?;
        Ok(described)
    }
}

/// A function with its name; gives whether it has arguments.
fn function(scanner: &mut Scanner<'_>, hasher: &mut TextHasher) -> Result<bool, Fault> {
    expect(scanner, Kind::Object, "", "must be an object")?;
    let (mut has_name, mut has_arguments) = (false, false);
    scanner.object(|scanner, key| {
        match &*key.decode() {
            "name" => {
                hasher.string(text(scanner, "name")?.inner());
                has_name = true;
            }
            "arguments" => {
                if !matches!(scanner.kind()?, Kind::String | Kind::Object) {
                    return Err(Fault::at("arguments", "must be a string or an object"));
                }
                scanner.skip(hasher)?;
                has_arguments = true;
            }
            "description" => {
                if let Some(text) = text_or_null(scanner, "description")? {
                    hasher.string(text.inner());
                }
            }
            key => other(scanner, key, hasher)?,
        }
        Ok(())
    })?;
    if has_name {
        Ok(has_arguments)
    } else {
        Err(Fault::at("name", "is required"))
    }
}
