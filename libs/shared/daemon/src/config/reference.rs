//! The table of settings for people, made from the declarations, so that the document cannot say anything else.

use std::fs;
use std::path::Path;

use clap::Arg;

use super::values::is_secret;
use super::{Declared, Settings};

/// A Markdown table of one daemon's settings.
pub fn reference<T: Settings>() -> String {
    let declared = Declared::of::<T>();
    let mut table = String::from("| key | flag | environment | default | what |\n|---|---|---|---|---|\n");
    for arg in declared.settings().filter(|arg| !arg.is_hide_set()) {
        table.push_str(&row(&declared, arg));
    }
    table
}

/// Whether the document has exactly this daemon's table between `<!-- NAME: begin -->` and `<!-- NAME: end -->`. With
/// `REMUDA_UPDATE_DOCS=1` in the environment it is put there. For the daemon's own test.
///
/// # Errors
/// What differs, and how to put it right.
pub fn check_reference<T: Settings>(document: &Path) -> Result<(), String> {
    let text = fs::read_to_string(document).map_err(|error| format!("{}: {error}", document.display()))?;
    let begin = format!("<!-- {}: begin -->\n", T::SECTION);
    let end = format!("<!-- {}: end -->", T::SECTION);
    let missing = || format!("{} has no {} ... {end}", document.display(), begin.trim_end());
    let from = text.find(&begin).ok_or_else(missing)? + begin.len();
    let to = from + text[from..].find(&end).ok_or_else(missing)?;
    let right = format!("\n{}\n", reference::<T>());
    if text[from..to] == right {
        return Ok(());
    }
    if std::env::var_os("REMUDA_UPDATE_DOCS").is_some_and(|value| value == "1") {
        let updated = format!("{}{right}{}", &text[..from], &text[to..]);
        return fs::write(document, updated).map_err(|error| format!("{}: {error}", document.display()));
    }
    Err(format!(
        "{} does not say what {} declares; run this test with REMUDA_UPDATE_DOCS=1. It should say:\n{right}",
        document.display(),
        T::SECTION
    ))
}

fn row(declared: &Declared, arg: &Arg) -> String {
    let setting = arg.get_id().as_str();
    let names: Vec<String> = declared
        .env_names(setting)
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    let text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let text = text.split(" [env:").next().unwrap_or_default();
    // A default that depends on the machine is told in the help: `Where files are [default: the user's cache directory]`.
    let (text, told) = match text.split_once(" [default: ") {
        Some((text, told)) => (text, told.strip_suffix(']')),
        None => (text, None),
    };
    let default = match told {
        Some(told) => told.to_owned(),
        None if defaults.is_empty() => "none".to_owned(),
        None => format!("`{}`", defaults.join(",")),
    };
    let help = text.replace('|', "\\|").replace('\n', " ");
    let words: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| !arg.is_hide_possible_values_set())
        .map(|word| format!("`{}`", word.get_name()))
        .collect();
    let words = if words.is_empty() {
        String::new()
    } else {
        format!(": {}", words.join(", "))
    };
    let secret = if is_secret(arg) {
        "; a secret, never shown"
    } else {
        ""
    };
    format!(
        "| `{setting}` | `{}` | {} | {default} | {help}{words}{secret} |\n",
        declared.flag(arg),
        names.join(", ")
    )
}
