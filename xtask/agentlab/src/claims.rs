//! Claims of warm sandboxes behind one lock: the benchmark of `warm-pool`.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::Lab;
use crate::figures::{Bar, Part, Promised};

pub(crate) fn measure(_: &Lab) -> Result<Part> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "--locked", "-p", "warm-pool", "--bench", "claims"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = text
        .lines()
        .find(|line| line.contains(" claims: p50 "))
        .context("no line of figures")?;
    Ok(Part {
        title: "Claims",
        bars: vec![Bar {
            what: "claim of a warm sandbox, 100 claimers, a pool of 1,000, p99".to_owned(),
            measured: p99_ms(line).with_context(|| line.to_owned())?,
            digits: 3,
            unit: "ms",
            promised: Promised::AtMost(1.0),
        }],
        text: format!("{line}.\n"),
    })
}

/// The 99th percentile in a line such as `...: p50 1.2µs, p99 3.4ms, ...`.
fn p99_ms(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("p99 ")?;
    let word = rest.split(',').next()?;
    let at = word.find(|c: char| c.is_ascii_alphabetic() || c == 'µ')?;
    let (number, unit) = word.split_at(at);
    let ms = match unit {
        "ns" => 1e-6,
        "µs" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_printed() {
        for (word, expect) in [
            ("850ns", 0.00085),
            ("12.5µs", 0.0125),
            ("3.4ms", 3.4),
            ("1s", 1000.0),
        ] {
            let read = p99_ms(&format!("9 claims: p50 1ns, p99 {word}, p99.9 2ms")).unwrap_or(0.0);
            assert!((read - expect).abs() < 1e-9, "{word}: {read}");
        }
    }
}
