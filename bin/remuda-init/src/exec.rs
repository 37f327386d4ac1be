//! Starting a process.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use init_protocol::{Exec, Failure, FailureCode};
use rustix::process::Pid;

/// A process that was started, with init's ends of its pipes. They do not block.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Starts `exec` in a process group of its own.
pub(crate) fn start(exec: &Exec, base: &[(OsString, OsString)]) -> Result<Started, Failure> {
    let Some((program, arguments)) = exec.command.split_first() else {
        return Err(Failure::new(FailureCode::Invalid, "a command without a program"));
    };
    if !Path::new(&exec.directory).is_dir() {
        return Err(Failure::new(
            FailureCode::NotFound,
            format!("there is no directory {}", exec.directory),
        ));
    }
    let path = exec
        .environment
        .iter()
        .rfind(|(name, _)| name == "PATH")
        .map(|(_, value)| OsString::from(value))
        .or_else(|| {
            base.iter()
                .find(|(name, _)| name == "PATH")
                .map(|(_, value)| value.clone())
        });
    let program_path = find(program, path.as_ref())
        .ok_or_else(|| Failure::new(FailureCode::NotFound, format!("there is no program {program}")))?;
    let mut child = Command::new(program_path)
        .arg0(program)
        .args(arguments)
        .env_clear()
        .envs(base.iter().map(|(name, value)| (name, value)))
        .envs(exec.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&exec.directory)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failure(program, &error))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (Some(pid), Some(stdin), Some(stdout), Some(stderr)) =
        (pid, child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Failure::new(FailureCode::Failed, "a process without pipes"));
    };
    let started = Started {
        pid,
        stdin: stdin.into(),
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    for end in [&started.stdin, &started.stdout, &started.stderr] {
        not_blocking(end).map_err(|error| failure(program, &error))?;
    }
    Ok(started)
}

/// Sets this side's end of a pipe to never block; the other side's is another open file and stays as it is.
pub(crate) fn not_blocking(end: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(end)?;
    Ok(rustix::fs::fcntl_setfl(
        end,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

/// The program's file. Looking here and not in `exec` lets the standard library take its fast way (`posix_spawn`).
fn find(program: &str, path: Option<&OsString>) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program));
    }
    std::env::split_paths(path?)
        .map(|directory| directory.join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        })
}

fn failure(program: &str, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => FailureCode::NotFound,
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => FailureCode::TooLarge,
        io::ErrorKind::ArgumentListTooLong => FailureCode::TooLarge,
        _ => FailureCode::Failed,
    };
    Failure::new(code, format!("cannot start {program}: {error}"))
}
