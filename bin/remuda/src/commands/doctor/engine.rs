//! Whether there is an engine, and if not, whether one can be built.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Finding;
use crate::paths;

const PROGRAM: &str = "llama-server";
const SETTING: &str = "ENGINE_PROVISIONER_PROGRAM";

/// An engine that is there needs nothing else; otherwise everything that building one takes is looked at.
pub(super) fn check() -> Vec<Finding> {
    if let Some(path) = env::var_os(SETTING)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
    {
        return vec![match path.is_file() {
            true => Finding::ok("engine", format!("{}, as {SETTING} says", path.display())),
            false => Finding::problem(
                "engine",
                format!("{SETTING} names {}, and no file is there", path.display()),
                "name the program, or unset it: then one is looked for and built if need be",
            ),
        }];
    }
    if let Some(path) = on_path(PROGRAM) {
        return vec![Finding::ok("engine", format!("{} on PATH", path.display()))];
    }
    let built = find_program(&paths::cache_directory().join("engines"), 4);
    if let Some(path) = built {
        return vec![Finding::ok("engine", format!("{} in the cache", path.display()))];
    }
    let mut findings = vec![Finding::ok(
        "engine",
        "none yet; the first `remuda run` builds one, once, in about 10 minutes",
    )];
    findings.push(compiler());
    findings.push(python());
    findings.extend([build_tool("cmake"), build_tool("ninja")]);
    findings
}

fn compiler() -> Finding {
    match ["c++", "g++", "clang++"].into_iter().find_map(on_path) {
        Some(path) => Finding::ok("C++ compiler", path.display().to_string()),
        None => Finding::problem(
            "C++ compiler",
            "none, and the engine has to be built",
            "on Debian or Ubuntu: apt-get install g++; on Fedora: dnf install gcc-c++; on a Mac: xcode-select --install",
        ),
    }
}

/// The engine's source, and CMake and Ninja where they are missing, come as Python packages.
fn python() -> Finding {
    let Some(python) = on_path("python3") else {
        return Finding::problem(
            "Python",
            "no python3, and the engine's source comes as a Python package",
            "on Debian or Ubuntu: apt-get install python3 python3-pip python3-venv",
        );
    };
    let has = |module: &str| {
        let probe = format!("import {module}");
        Command::new(&python)
            .args(["-c", &probe])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    match (has("pip"), has("venv")) {
        (true, true) => Finding::ok("Python", format!("{} with pip and venv", python.display())),
        (true, false) => Finding::ok("Python", format!("{} with pip", python.display())),
        (false, _) => Finding::problem(
            "Python",
            format!(
                "{} has no pip, and the engine's source comes as a Python package",
                python.display()
            ),
            "on Debian or Ubuntu: apt-get install python3-pip python3-venv",
        ),
    }
}

fn build_tool(name: &'static str) -> Finding {
    match on_path(name) {
        Some(path) => Finding::ok(name, path.display().to_string()),
        None => Finding::ok(
            name,
            "not installed; it is fetched as a Python package when the engine is built",
        ),
    }
}

pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Looks for the program in a directory and at most `depth` levels below it.
fn find_program(directory: &Path, depth: u32) -> Option<PathBuf> {
    let candidate = directory.join(PROGRAM);
    if candidate.is_file() {
        return Some(candidate);
    }
    if depth == 0 {
        return None;
    }
    let entries = std::fs::read_dir(directory).ok()?;
    entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .find_map(|entry| find_program(&entry.path(), depth - 1))
}
