//! Values: checking one with its setting's own parser, and the parsers for durations and sizes.

use std::any::TypeId;
use std::error::Error;
use std::time::Duration;

use clap::builder::{BoolishValueParser, Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::EnvName;
use crate::secret::Secret;

/// Longer than any wait that is meant, and far from where clocks overflow.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A duration of at least 1 ms: `1500` is milliseconds; `2s`, `5m`, `1h` also work.
///
/// # Errors
/// What would be right.
pub fn milliseconds(text: &str) -> Result<Duration, String> {
    positive(milliseconds_or_zero(text)?, "1")
}

/// As [`milliseconds`], and `0` is allowed.
///
/// # Errors
/// What would be right.
pub fn milliseconds_or_zero(text: &str) -> Result<Duration, String> {
    duration(
        text,
        Duration::from_millis(1),
        "a whole number of milliseconds (or with a unit: 250ms, 5s, 2m)",
    )
}

/// A duration of at least 1 ms: `10` is seconds; `500ms`, `5m`, `1h` also work.
///
/// # Errors
/// What would be right.
pub fn seconds(text: &str) -> Result<Duration, String> {
    positive(seconds_or_zero(text)?, "1")
}

/// As [`seconds`], and `0` is allowed.
///
/// # Errors
/// What would be right.
pub fn seconds_or_zero(text: &str) -> Result<Duration, String> {
    duration(
        text,
        Duration::from_secs(1),
        "a whole number of seconds (or with a unit: 500ms, 10s, 2m)",
    )
}

/// A size in bytes: `1048576`, `64KiB`, `10MB`, `2GiB`.
///
/// # Errors
/// What would be right.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wanted = || "right would be a number of bytes (or with a unit: 64KiB, 10MB, 2GiB)".to_owned();
    let (number, unit) = split(text).ok_or_else(wanted)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wanted()),
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| "the size is too large".to_owned())
}

/// A size in bytes of at least 1, as [`bytes`] reads it.
///
/// # Errors
/// What would be right.
pub fn some_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("right would be at least 1".to_owned()),
        size => Ok(size),
    }
}

/// A whole number from `MIN` to `MAX`.
///
/// # Errors
/// What would be right.
pub fn whole<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|number| (MIN..=MAX).contains(number))
        .ok_or_else(|| format!("right would be a whole number from {MIN} to {MAX}"))
}

/// An address that begins with `http://` or `https://` and names a host.
///
/// # Errors
/// What would be right.
pub fn http_address(text: &str) -> Result<String, String> {
    let uri: Option<http::Uri> = text.parse().ok();
    let is_one = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    if is_one {
        Ok(text.to_owned())
    } else {
        Err("right would be an address such as http://127.0.0.1:4318".to_owned())
    }
}

fn duration(text: &str, bare: Duration, wanted: &str) -> Result<Duration, String> {
    let wanted = || format!("right would be {wanted}");
    let (number, unit) = split(text).ok_or_else(wanted)?;
    let unit = match unit {
        "" => bare,
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" | "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(wanted()),
    };
    u32::try_from(number)
        .ok()
        .and_then(|number| unit.checked_mul(number))
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| "right would be at most 365 days".to_owned())
}

fn positive(duration: Duration, least: &str) -> Result<Duration, String> {
    if duration.is_zero() {
        Err(format!("right would be at least {least}"))
    } else {
        Ok(duration)
    }
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// The argument as this crate reads it: the environment is read here and not by clap, `bool`s take a value, the names
/// in the environment stand in the help without their values.
pub(super) fn readable(arg: Arg, names: &[EnvName]) -> Arg {
    let arg = match arg.get_action() {
        ArgAction::SetTrue => {
            let arg = if arg.get_default_values().is_empty() {
                arg.default_value("false")
            } else {
                arg
            };
            arg.action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(BoolishValueParser::new())
                .value_name("BOOL")
                .hide_possible_values(true)
        }
        _ => arg,
    };
    if names.is_empty() {
        return arg;
    }
    let all: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let named = |help: StyledStr| format!("{help} [env: {}]", all.join(", "));
    let arg = match arg.get_long_help().cloned() {
        Some(help) => arg.long_help(named(help)),
        None => arg,
    };
    let help = named(arg.get_help().cloned().unwrap_or_default());
    arg.env(Resettable::Reset).help(help)
}

/// Whether the value may not be shown.
pub(super) fn is_secret(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<Secret>() || arg.is_hide_env_values_set()
}

/// Checks values with the setting's own parser.
pub(super) fn check(arg: &Arg, texts: &[String]) -> Result<(), String> {
    let Some(long) = arg.get_long() else { return Ok(()) };
    // What ties the argument to others is checked where all are together.
    let alone = arg
        .clone()
        .required(false)
        .requires(Resettable::Reset)
        .conflicts_with(Resettable::Reset)
        .overrides_with(Resettable::Reset)
        .required_unless_present(Resettable::Reset)
        .group(Resettable::Reset);
    let flags = texts.iter().map(|text| format!("--{long}={text}"));
    match Command::new("check")
        .no_binary_name(true)
        .arg(alone)
        .try_get_matches_from(flags)
    {
        Ok(_) => Ok(()),
        Err(error) => Err(describe(arg, texts, &error)),
    }
}

/// `is "many": invalid digit found in string (Longest queue of a pool; default 100)`
pub(super) fn describe(arg: &Arg, texts: &[String], error: &clap::Error) -> String {
    let mut text = String::from("is ");
    if is_secret(arg) {
        text.push_str("not right");
    } else {
        text.push_str(
            &texts
                .iter()
                .map(|text| format!("{text:?}"))
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    let reason = match error.kind() {
        _ if arg.get_value_parser().type_id() == TypeId::of::<bool>() => {
            "right would be true or false".to_owned()
        }
        // The parser's own words may repeat the value.
        ErrorKind::ValueValidation if is_secret(arg) => String::new(),
        ErrorKind::ValueValidation => error.source().map(ToString::to_string).unwrap_or_default(),
        _ => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                format!("right would be {}", valid.join(" or "))
            }
            _ => "right would be one value".to_owned(),
        },
    };
    if !reason.is_empty() {
        text.push_str(if text.ends_with('"') { "; " } else { ": " });
        text.push_str(&reason);
    }
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.split(" [env:").next().unwrap_or_default();
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    match (help.is_empty(), defaults.is_empty()) {
        (true, _) => {}
        (false, true) => text.push_str(&format!(" ({help})")),
        (false, false) => text.push_str(&format!(" ({help}; the default is {})", defaults.join(","))),
    }
    text
}
