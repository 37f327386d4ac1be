//! Installing a CLI by npm, from the lock file beside its profile.
//!
//! ```text
//! DIRECTORY/claude.lock                       held while somebody installs
//! DIRECTORY/claude/2.1.329-<lock's digest>/   node_modules, there only when whole
//! DIRECTORY/claude/.installing/               what is not whole yet, or was left by somebody who died
//! ```
//!
//! npm checks the digest of everything that it fetches against the lock file; scripts of packages are not run. An
//! installation is built aside and renamed, so that it is there whole or not at all, also after a kill or a full disk.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::profile::{Profile, platform};

/// npm may not take longer.
const INSTALL_TIME_MAX: Duration = Duration::from_secs(20 * 60);

/// How much of what npm says is kept for an error, in bytes.
const SAID_BYTES_MAX: usize = 4096;

/// How many of its lines are told; the first ones say what is wrong.
const SAID_LINES_MAX: usize = 4;

/// The longest line of npm that is read, in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// How far an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process installs the same; this one waits for it.
    Waiting,
    /// npm has begun.
    Started {
        /// How many packages it will fetch, at most.
        packages: usize,
    },
    /// npm has fetched one more.
    Fetched {
        /// How many it has by now.
        packages: usize,
    },
}

/// Why a CLI is not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no npm.
    #[error("npm is not on the PATH: install Node.js 20 or later")]
    NoNpm,
    /// The registry cannot be reached.
    #[error("npm cannot reach its registry: {said}")]
    Offline {
        /// npm's words.
        said: String,
    },
    /// Something is not what the lock file says it is.
    #[error("npm refuses a package whose digest is not the one in the lock file: {said}")]
    Integrity {
        /// npm's words.
        said: String,
    },
    /// npm failed otherwise.
    #[error("npm failed ({status}): {said}")]
    Npm {
        /// How it ended.
        status: ExitStatus,
        /// What it said is wrong.
        said: String,
    },
    /// npm did not come to an end.
    #[error("npm was ended after {} minutes", INSTALL_TIME_MAX.as_secs() / 60)]
    TooLong,
    /// What was installed has no program for this machine.
    #[error("{agent} {version} has no program for {platform}")]
    NoProgram {
        /// The agent.
        agent: String,
        /// Its version.
        version: String,
        /// This machine.
        platform: String,
    },
    /// The file system.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Where `profile` is installed below `directory`. None: it is not.
pub fn installed(profile: &Profile, directory: &Path) -> Option<PathBuf> {
    let place = place(profile, directory);
    place.join("node_modules").is_dir().then_some(place)
}

/// Installs `profile` below `directory` unless it is there, and says where: the `Install` of its templates.
///
/// Blocks for as long as npm takes; `progress` is called meanwhile.
pub fn install(
    profile: &Profile,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, InstallError> {
    install_with("npm", profile, directory, progress)
}

fn install_with(
    npm: &str,
    profile: &Profile,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, InstallError> {
    if let Some(place) = installed(profile, directory) {
        return Ok(place);
    }
    let home = directory.join(&profile.name);
    io("create", &home, fs::create_dir_all(&home))?;
    let _lock = lock(&directory.join(format!("{}.lock", profile.name)), progress)?;
    // Whoever had the lock before may have done it.
    if let Some(place) = installed(profile, directory) {
        return Ok(place);
    }
    let aside = home.join(".installing");
    // Nobody else has the lock: this was left by somebody who died.
    if aside.exists() {
        io("remove", &aside, fs::remove_dir_all(&aside))?;
    }
    io("create", &aside, fs::create_dir_all(&aside))?;
    let done = fill(npm, profile, &aside, progress);
    if let Err(error) = done {
        // The error matters more than what is left; the next installation removes it.
        let _ = fs::remove_dir_all(&aside);
        return Err(error);
    }
    let place = place(profile, directory);
    io("rename", &aside, fs::rename(&aside, &place))?;
    Ok(place)
}

/// Where `profile` is, or would be, installed below `directory`.
pub fn place(profile: &Profile, directory: &Path) -> PathBuf {
    directory.join(&profile.name).join(release(profile))
}

/// The name of the image of Docker sandboxes in which exactly this is installed.
pub fn image_name(profile: &Profile) -> String {
    format!("remuda-agent-{}:{}", profile.name, release(profile))
}

fn release(profile: &Profile) -> String {
    let digest = fingerprint(profile.lock_file().as_bytes());
    format!("{}-{digest:016x}", profile.package.version)
}

fn lock(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, InstallError> {
    let file = io("create", path, File::create(path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        progress(Progress::Waiting);
        let locked = flock(&file, FlockOperation::LockExclusive);
        io("lock", path, locked.map_err(Into::into))?;
    }
    Ok(file)
}

/// Runs npm in `aside` and checks what it has made.
fn fill(
    npm: &str,
    profile: &Profile,
    aside: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), InstallError> {
    let lock: Value = serde_json::from_str(profile.lock_file()).unwrap_or_default();
    let manifest = serde_json::json!({
        "name": lock["name"], "private": true, "dependencies": lock["packages"][""]["dependencies"],
    });
    for (name, content) in [
        ("package.json", manifest.to_string()),
        ("package-lock.json", profile.lock_file().to_owned()),
    ] {
        let path = aside.join(name);
        io("write", &path, fs::write(&path, content))?;
    }
    progress(Progress::Started {
        packages: packages(&lock),
    });
    let mut command = Command::new(npm);
    command
        .args([
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=http",
        ])
        .args(["--no-progress", "--no-update-notifier"])
        // By default it takes more than a minute to find out that there is no network.
        .args([
            "--fetch-retries=2",
            "--fetch-retry-mintimeout=1000",
            "--fetch-retry-maxtimeout=4000",
        ])
        .current_dir(aside)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // What it starts is ended with it.
        .process_group(0);
    let child = command.spawn().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => InstallError::NoNpm,
        _ => InstallError::Io {
            doing: "start",
            path: npm.into(),
            source,
        },
    })?;
    let (status, said) = watch(child, npm, progress)?;
    if !status.success() {
        return Err(failed(status, &said));
    }
    let programs = &profile.package.programs;
    let program = programs
        .get(&platform())
        .or_else(|| programs.get("any"))
        .filter(|program| aside.join("node_modules").join(program).is_file());
    match program {
        Some(_) => Ok(()),
        None => Err(InstallError::NoProgram {
            agent: profile.name.clone(),
            version: profile.package.version.clone(),
            platform: platform(),
        }),
    }
}

/// Reads what npm says until it ends, and ends it when it takes too long.
fn watch(
    mut child: Child,
    npm: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<(ExitStatus, String), InstallError> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let stderr = child.stderr.take().expect("it is piped");
    let (ended, end) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = end.recv_timeout(INSTALL_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout);
        if late && let Some(pid) = pid {
            // Gone already is as good.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        late
    });
    let mut said = String::new();
    let mut fetched = 0;
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(read) = lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
        if read == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        if text.contains("http fetch GET 200") && text.contains(".tgz") {
            fetched += 1;
            progress(Progress::Fetched { packages: fetched });
        } else if !text.contains("http ") {
            said.push_str(&text);
            let excess = said.len().saturating_sub(SAID_BYTES_MAX);
            said.drain(..said.ceil_char_boundary(excess));
        }
        line.clear();
    }
    let status = io("wait for", Path::new(npm), child.wait());
    drop(ended);
    let late = watchdog.join().unwrap_or(false);
    if late {
        return Err(InstallError::TooLong);
    }
    Ok((status?, said.trim().to_owned()))
}

fn failed(status: ExitStatus, said: &str) -> InstallError {
    let telling = |line: &&str| {
        let words = line.trim_start_matches("npm error").trim();
        line.starts_with("npm error") && !words.is_empty() && !words.starts_with("A complete log")
    };
    let lines: Vec<&str> = said.lines().filter(telling).take(SAID_LINES_MAX).collect();
    let said = lines.join("\n");
    let has = |codes: &[&str]| codes.iter().any(|code| said.contains(code));
    if has(&["EINTEGRITY"]) {
        InstallError::Integrity { said }
    } else if has(&[
        "ENOTFOUND",
        "ECONNREFUSED",
        "EAI_AGAIN",
        "ETIMEDOUT",
        "ECONNRESET",
        "ENETUNREACH",
    ]) {
        InstallError::Offline { said }
    } else {
        InstallError::Npm { status, said }
    }
}

/// How many packages of the lock file are for this machine.
fn packages(lock: &Value) -> usize {
    let node_os = match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    };
    let node_cpu = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        cpu => cpu,
    };
    let fits = |list: &Value, word: &str| {
        list.as_array()
            .is_none_or(|words| words.iter().any(|listed| listed == word))
    };
    lock["packages"].as_object().map_or(0, |packages| {
        packages
            .iter()
            .filter(|(name, package)| {
                !name.is_empty() && fits(&package["os"], node_os) && fits(&package["cpu"], node_cpu)
            })
            .count()
    })
}

fn io<T>(doing: &'static str, path: &Path, result: std::io::Result<T>) -> Result<T, InstallError> {
    result.map_err(|source| InstallError::Io {
        doing,
        path: path.to_owned(),
        source,
    })
}

/// FNV-1a: only to tell one lock file from another.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
