//! The profiles that are built in, and the files that they name.

/// The names of the profiles.
pub(super) const NAMES: [&str; 4] = ["claude", "codex", "gemini", "opencode"];

pub(super) fn profile(name: &str) -> Option<&'static str> {
    Some(match name {
        "claude" => include_str!("../../../../../agents/claude.toml"),
        "codex" => include_str!("../../../../../agents/codex.toml"),
        "gemini" => include_str!("../../../../../agents/gemini.toml"),
        "opencode" => include_str!("../../../../../agents/opencode.toml"),
        _ => return None,
    })
}

pub(super) fn file(name: &str) -> Option<&'static str> {
    Some(match name {
        "claude/package-lock.json" => include_str!("../../../../../agents/claude/package-lock.json"),
        "codex/package-lock.json" => include_str!("../../../../../agents/codex/package-lock.json"),
        "gemini/package-lock.json" => include_str!("../../../../../agents/gemini/package-lock.json"),
        "opencode/package-lock.json" => include_str!("../../../../../agents/opencode/package-lock.json"),
        _ => return None,
    })
}
