//! Tables for people, JSON for programs, and how sizes, times and states are written.
//!
//! Everything goes through `anstream`, which drops colours where the output is no terminal and where `NO_COLOR` is set.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

pub(crate) fn bold(text: impl Display) -> String {
    format!("\x1b[1m{text}\x1b[0m")
}

pub(crate) fn red(text: impl Display) -> String {
    format!("\x1b[1;31m{text}\x1b[0m")
}

pub(crate) fn green(text: impl Display) -> String {
    format!("\x1b[32m{text}\x1b[0m")
}

pub(crate) fn yellow(text: impl Display) -> String {
    format!("\x1b[33m{text}\x1b[0m")
}

pub(crate) fn dim(text: impl Display) -> String {
    format!("\x1b[2m{text}\x1b[0m")
}

/// Prints a value for programs.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    writeln!(anstream::stdout(), "{text}").context("writing to standard output")
}

/// A table with the given header.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .enforce_styling()
        .style_text_only();
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(
        header
            .iter()
            .map(|name| Cell::new(name).add_attribute(comfy_table::Attribute::Bold)),
    );
    table
}

/// Prints a table, or the sentence that says why there is nothing in it.
pub(crate) fn print_table(table: &Table, when_empty: &str) -> Result<()> {
    if table.is_empty() {
        return writeln!(anstream::stderr(), "{when_empty}").context("writing to standard error");
    }
    write!(anstream::stdout(), "{}", rendered(table)).context("writing to standard output")
}

/// The first column starts at the edge, and nothing is written after the last word.
fn rendered(table: &Table) -> String {
    table
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(&line).trim_end()))
        .collect()
}

/// The table as it looks without colours.
#[cfg(test)]
pub(crate) fn plain(table: &Table) -> String {
    anstream::adapter::strip_str(&rendered(table)).to_string()
}

/// A cell for a state, in the colour that tells whether somebody should look.
pub(crate) fn state_cell(state: &str) -> Cell {
    let cell = Cell::new(state);
    match state {
        "online" | "ready" | "completed" | "running" | "yes" => cell.fg(Color::Green),
        "stale" | "draining" | "starting" | "queued" | "placed" => cell.fg(Color::Yellow),
        "offline" | "failed" | "expired" | "evicted" | "not ready" | "no" => cell.fg(Color::Red),
        _ => cell,
    }
}

/// The text that serde writes for a unit variant.
pub(crate) fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// A size in bytes, as people say it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A length of time, as people say it.
pub(crate) fn duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", duration.as_secs_f64()),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// How long ago something was.
pub(crate) fn ago(ms: u64) -> String {
    format!("{} ago", duration(Duration::from_millis(ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_written_as_people_say_them() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
        assert_eq!(duration(Duration::from_millis(999)), "999 ms");
        assert_eq!(duration(Duration::from_millis(1_500)), "1.5 s");
        assert_eq!(duration(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(duration(Duration::from_secs(7_260)), "2 h 1 min");
        assert_eq!(duration(Duration::from_secs(260_000)), "3 days");
    }
}
