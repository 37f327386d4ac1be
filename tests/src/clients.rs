//! Other people's clients, installed once into the user's cache from their lock files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

/// A directory of `tests/clients`.
pub fn clients(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// The Python of an environment with what `tests/clients/python/requirements.txt` names; None when it cannot be had.
pub fn python() -> Option<PathBuf> {
    let requirements = clients("python").join("requirements.txt");
    let directory = installed("python", &requirements, |directory| {
        run(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
        run(Command::new(directory.join("bin/pip"))
            .args(["install", "--quiet", "-r"])
            .arg(&requirements))
    })?;
    Some(directory.join("bin/python"))
}

/// A directory with `node_modules` as `tests/clients/node/package-lock.json` has it; None when it cannot be had.
pub fn node() -> Option<PathBuf> {
    let source = clients("node");
    installed("node", &source.join("package-lock.json"), |directory| {
        std::fs::create_dir_all(directory).ok()?;
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(source.join(file), directory.join(file)).ok()?;
        }
        run(Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund"])
            .current_dir(directory))
    })
}

/// Installs into a directory named after the contents of `lock`, once for all tests and runs.
fn installed(name: &str, lock: &Path, install: impl FnOnce(&Path) -> Option<()>) -> Option<PathBuf> {
    let contents = std::fs::read(lock).expect("a lock file in the repository");
    let cache = cache_directory().join("test-clients");
    std::fs::create_dir_all(&cache).ok()?;
    let directory = cache.join(format!("{name}-{:016x}", fingerprint(&contents)));
    let complete = directory.join(".complete");
    let guard = File::create(cache.join(format!("{name}.lock"))).ok()?;
    flock(&guard, FlockOperation::LockExclusive).ok()?;
    if !complete.exists() {
        println!("installing {} into {} ...", lock.display(), directory.display());
        // What an interrupted run has left is not trusted.
        let _ = std::fs::remove_dir_all(&directory);
        install(&directory)?;
        File::create(&complete).ok()?;
    }
    Some(directory)
}

fn run(command: &mut Command) -> Option<()> {
    let output = command.output().ok()?;
    if !output.status.success() {
        println!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(())
}

fn cache_directory() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME")
        .or_else(|| Some(set("HOME")?.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("remuda")
}

/// FNV-1a: only to tell one lock file from another.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
