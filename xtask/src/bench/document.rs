//! `docs/benchmarks.md`: two halves, each written by a run of its own.

use anyhow::{Context as _, Result};

use crate::verify::root;

/// What the second half begins with.
pub(super) const AGENTS: &str = "# Agents";

/// Which half is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// The first one.
    Engines,
    /// The second one.
    Agents,
}

/// Writes one half, and leaves the other as it is.
pub(super) fn write(half: Half, text: &str) -> Result<()> {
    let path = root().join("docs/benchmarks.md");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, with_half(&old, half, text)).context("writing docs/benchmarks.md")?;
    println!("written: docs/benchmarks.md");
    Ok(())
}

fn with_half(old: &str, half: Half, text: &str) -> String {
    let at = old.find(&format!("\n{AGENTS}\n")).map(|before| before + 1);
    let (engines, agents) = old.split_at(at.unwrap_or(old.len()));
    let (engines, agents) = match half {
        Half::Engines => (text, agents),
        Half::Agents => (engines, text),
    };
    let halves = [engines.trim_end(), agents.trim_end()];
    let halves: Vec<&str> = halves.into_iter().filter(|half| !half.is_empty()).collect();
    format!("{}\n", halves.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_leaves_the_other_as_it_is() {
        let agents = format!("{AGENTS}\n\nfast\n");
        let first = with_half("", Half::Engines, "# Benchmarks\n\nfast\n");
        let both = with_half(&first, Half::Agents, &agents);
        assert_eq!(both, "# Benchmarks\n\nfast\n\n# Agents\n\nfast\n");
        let again = with_half(&both, Half::Agents, &agents.replace("fast", "faster"));
        assert_eq!(again, "# Benchmarks\n\nfast\n\n# Agents\n\nfaster\n");
        let again = with_half(&again, Half::Engines, "# Benchmarks\n\nslow\n");
        assert_eq!(again, "# Benchmarks\n\nslow\n\n# Agents\n\nfaster\n");
    }
}
