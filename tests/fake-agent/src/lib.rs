//! What whoever starts the fake agent needs: where to put it, and what it will say.

use std::fs;
use std::io;
use std::path::Path;

/// The name of its profile and of its program.
pub const NAME: &str = "fake-agent";

/// Its profile. The commands are those of Claude Code, whose lines it speaks.
pub const PROFILE: &str = include_str!("profile.toml");

const LOCK: &str = r#"{"name": "fake", "lockfileVersion": 3, "packages": {
  "": {"name": "fake", "dependencies": {"fake-agent": "1.0.0"}},
  "node_modules/fake-agent": {"version": "1.0.0", "integrity": "sha512-nobody-fetches-it"}
}}"#;

/// How many bytes a line of a flood has, with the line feed.
pub const FLOOD_LINE_BYTES: usize = 1000;

/// Line `number` of a flood.
pub fn line_of_flood(number: u32) -> String {
    let fill = ["abcdefghijklmnopqrst", "01234567890123456789"][(number % 2) as usize];
    let mut line = format!("{number:08} ");
    while line.len() < FLOOD_LINE_BYTES - 1 {
        line.push_str(&fill[..fill.len().min(FLOOD_LINE_BYTES - 1 - line.len())]);
    }
    line.push('\n');
    line
}

/// A clock that is the same in a sandbox and outside.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let [seconds, nanoseconds] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds * 1_000_000_000 + nanoseconds
}

/// Writes its profile into `profiles`.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_profile(profiles: &Path) -> io::Result<()> {
    fs::create_dir_all(profiles.join(NAME))?;
    fs::write(profiles.join(format!("{NAME}.toml")), PROFILE)?;
    fs::write(profiles.join(NAME).join("package-lock.json"), LOCK)
}

/// Puts the built program where npm would have put a CLI: into `place`.
///
/// # Errors
/// When the directory cannot be written, or the program is not there.
pub fn install(program: &Path, place: &Path) -> io::Result<()> {
    let package = place.join("node_modules").join(NAME);
    fs::create_dir_all(&package)?;
    fs::copy(program, package.join(NAME)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_flood_are_told_apart() {
        assert_eq!(line_of_flood(7).len(), FLOOD_LINE_BYTES);
        assert!(line_of_flood(12).starts_with("00000012 abc"));
        assert_ne!(line_of_flood(1)[9..], line_of_flood(2)[9..]);
    }
}
