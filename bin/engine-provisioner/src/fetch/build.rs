//! Building an engine from its source: CMake and Ninja.
//!
//! The build directory has a fixed place, so that a build that was cut short goes on where it was. It is removed when
//! the engine is built; after a failure it stays, with the log.

use std::path::{Path, PathBuf};
use std::process::Command;

use model_store::Progress;

use super::engine::EngineError;
use super::run::{is_program, on_path, run};
use super::unpack::{Within, unpack};
use crate::recipe::{Build, PythonPackage, Variant};

/// What a build needs to know.
pub(super) struct Job<'a> {
    pub(super) build: &'a Build,
    pub(super) package: &'a PythonPackage,
    pub(super) variant: Variant,
    /// The package's source archive.
    pub(super) archive: &'a Path,
    pub(super) cache_dir: &'a Path,
    /// Where the build takes place.
    pub(super) directory: &'a Path,
    pub(super) log: &'a Path,
    /// The engine's name, for people.
    pub(super) name: &'a str,
}

/// Builds the engine and answers where its program is.
pub(super) async fn build(job: &Job<'_>, progress: &Progress) -> Result<PathBuf, EngineError> {
    let flags = job
        .build
        .variants
        .get(&job.variant)
        .ok_or_else(|| EngineError::Variant {
            variant: job.variant.name(),
            known: job
                .build
                .variants
                .keys()
                .map(|variant| variant.name())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    if !has_compiler() {
        return Err(EngineError::NoCompiler);
    }
    let source = unpack_source(job, progress).await?;
    let tools = Tools::get(job.cache_dir, job.log, progress).await?;
    let directory = job.directory.join("build");
    progress.pieces(&format!("configuring {}", job.name), 0, None);
    let mut configure = Command::new(&tools.cmake);
    configure
        .arg("-S")
        .arg(&source)
        .arg("-B")
        .arg(&directory)
        .args(["-G", "Ninja"]);
    configure.arg(format!("-DCMAKE_MAKE_PROGRAM={}", tools.ninja.display()));
    configure.args(&job.build.flags).args(flags);
    run(configure, job.log, None).await?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut ninja = Command::new(&tools.ninja);
    ninja
        .arg("-C")
        .arg(&directory)
        .arg("-j")
        .arg(jobs.to_string())
        .arg(&job.build.target);
    let (what, on_progress) = (
        format!("building {} ({})", job.name, job.variant.name()),
        progress.clone(),
    );
    let tap = move |line: &str| {
        if let Some((done, total)) = ninja_progress(line) {
            on_progress.pieces(&what, done, Some(total));
        }
    };
    run(ninja, job.log, Some(Box::new(tap))).await?;
    let program = directory.join(&job.build.program);
    if is_program(&program) {
        Ok(program)
    } else {
        Err(EngineError::NotBuilt(program))
    }
}

async fn unpack_source(job: &Job<'_>, progress: &Progress) -> Result<PathBuf, EngineError> {
    let source = job.directory.join("source");
    let unpacked = job.directory.join("source.complete");
    if unpacked.is_file() {
        return Ok(source);
    }
    let (archive, target, progress) = (job.archive.to_owned(), source.clone(), progress.clone());
    let within = Within::Directory(job.package.directory.clone());
    tokio::task::spawn_blocking(move || {
        if target.exists() {
            std::fs::remove_dir_all(&target).map_err(|source| EngineError::Keep {
                path: target.clone(),
                source,
            })?;
        }
        unpack(&archive, &within, &target, &progress).map_err(EngineError::from)
    })
    .await
    .expect("unpacking does not panic")?;
    std::fs::write(&unpacked, "").map_err(|source| EngineError::Keep {
        path: unpacked,
        source,
    })?;
    Ok(source)
}

/// The numbers of Ninja's `[12/345] Building ...`.
fn ninja_progress(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim_start().strip_prefix('[')?.split_once('/')?;
    let (total, _) = rest.split_once(']')?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

fn has_compiler() -> bool {
    let named = std::env::var_os("CXX").is_some_and(|compiler| !compiler.is_empty());
    named
        || ["c++", "g++", "clang++"]
            .iter()
            .any(|name| on_path(name).is_some())
}

struct Tools {
    cmake: PathBuf,
    ninja: PathBuf,
}

impl Tools {
    /// From PATH, else as Python packages in the cache.
    async fn get(cache_dir: &Path, log: &Path, progress: &Progress) -> Result<Self, EngineError> {
        if let (Some(cmake), Some(ninja)) = (on_path("cmake"), on_path("ninja")) {
            return Ok(Self { cmake, ninja });
        }
        let directory = cache_dir.join("tools").join("cmake-ninja");
        if let Some(tools) = Self::within(&directory) {
            return Ok(tools);
        }
        progress.pieces("downloading cmake and ninja", 0, None);
        let python = on_path("python3").ok_or(EngineError::NoPython)?;
        let mut pip = Command::new(python);
        // A directory of their own needs no virtual environment, and no leave of the system's Python.
        pip.args([
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--upgrade",
        ]);
        pip.args(["--only-binary", ":all:", "--target"])
            .arg(&directory)
            .args(["cmake", "ninja"]);
        run(pip, log, None).await?;
        Self::within(&directory).ok_or(EngineError::NoTools(directory))
    }

    fn within(directory: &Path) -> Option<Self> {
        // Older packages keep the real programs elsewhere than newer ones.
        let first = |paths: [&str; 2]| {
            paths
                .iter()
                .map(|path| directory.join(path))
                .find(|path| is_program(path))
        };
        Some(Self {
            cmake: first(["cmake/data/bin/cmake", "bin/cmake"])?,
            ninja: first(["bin/ninja", "ninja/data/bin/ninja"])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninja_tells_how_far_it_is() {
        assert_eq!(
            ninja_progress("[12/345] Building CXX object a.o"),
            Some((12, 345))
        );
        assert_eq!(ninja_progress("  [1/2] x"), Some((1, 2)));
        for other in ["", "[", "[1/", "[a/b] x", "ninja: no work to do.", "12/345"] {
            assert_eq!(ninja_progress(other), None, "{other}");
        }
    }

    #[test]
    fn tools_count_only_when_both_are_there() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let add = |path: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        add("cmake/data/bin/cmake");
        assert!(Tools::within(directory.path()).is_none());
        add("bin/ninja");
        assert!(
            Tools::within(directory.path())
                .unwrap()
                .ninja
                .ends_with("bin/ninja")
        );
    }
}
