//! Starting, keeping and ending a child.
//!
//! ```text
//! Running ──the child ends, its group is killed, it is reaped──▶ Ended
//! ```
//! Signals are sent under the lock of this state, so none is sent after the child was reaped and its id was free to be
//! used again.

use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};

use crate::identity::{Identity, raw_pid};
use crate::log::BoundedLog;

/// A line handed on is cut here; more of it only goes to the log.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// How long after a child's end its last output is waited for.
const OUTPUT_DRAIN_MAX: Duration = Duration::from_secs(1);

/// Whether a child dies with this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It dies with this process, and when its [`Child`] is dropped.
    Tied,
    /// It lives on by itself; dropping its [`Child`] changes nothing.
    Detached,
}

/// Gets each line that a child prints.
pub type LineTap = Box<dyn FnMut(&str) + Send>;

/// Where a child's standard output and standard error go.
pub enum Output {
    /// Nowhere.
    Discard,
    /// Through this process into a log of bounded size. Only for a tied child: it would lose its output with us.
    Log {
        /// The log file.
        path: PathBuf,
        /// Its bound, see [`BoundedLog::open`].
        bytes_max: u64,
        /// Gets each line as well.
        on_line: Option<LineTap>,
    },
    /// Each line to whoever wants it, and nowhere else. Only for a tied child.
    Lines(LineTap),
    /// Straight to the end of a file, which is emptied first when it is larger than `bytes_max`.
    File {
        /// The file.
        path: PathBuf,
        /// From which size on it is emptied at the start.
        bytes_max: u64,
    },
}

/// What to start.
pub struct Request {
    /// Program, arguments, environment and directory. Its standard streams are set by [`spawn`].
    pub command: Command,
    /// Whether it dies with this process.
    pub lifetime: Lifetime,
    /// Where its output goes.
    pub output: Output,
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The file for its output could not be opened.
    #[error("cannot open the log {}", path.display())]
    Log {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no pipe to be had.
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
    /// There is no thread to be had.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The code that it ended with by itself.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Exit {
    /// Whether it ended by itself with code 0.
    pub fn is_success(self) -> bool {
        self.code == Some(0)
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self {
            code: status.code(),
            signal: status.signal(),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "ended with exit code {code}"),
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => f.write_str("ended in an unknown way"),
        }
    }
}

/// A child that was started by [`spawn`].
pub struct Child {
    identity: Identity,
    lifetime: Lifetime,
    state: Arc<Shared>,
}

impl Child {
    /// Which process it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Asks the child to end: SIGTERM to its process group. Answers whether it was still running.
    pub fn terminate(&self) -> bool {
        self.state.signal(Signal::TERM)
    }

    /// Ends the child: SIGKILL to its process group. Answers whether it was still running.
    pub fn kill(&self) -> bool {
        self.state.signal(Signal::KILL)
    }

    /// How it ended; None while it runs.
    pub fn exit(&self) -> Option<Exit> {
        self.state.lock().ended
    }

    /// Waits until it has ended and was reaped, at most `timeout`. Blocks the thread.
    pub fn wait(&self, timeout: Duration) -> Option<Exit> {
        let end = Instant::now() + timeout;
        let mut state = self.state.lock();
        loop {
            if let Some(exit) = state.ended {
                return Some(exit);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self
                .state
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Tied {
            self.kill();
        }
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("identity", &self.identity)
            .field("exit", &self.exit())
            .finish()
    }
}

/// Starts a child in its own session, on a thread that lives as long as the child.
///
/// `on_exit` is called on that thread once, after the child was reaped and its last output was written. Core dumps are
/// off in the child: an engine's memory holds what people asked it.
pub fn spawn(request: Request, on_exit: impl FnOnce(Exit) + Send + 'static) -> Result<Child, SpawnError> {
    let lifetime = request.lifetime;
    let (started_sender, started) = mpsc::sync_channel(1);
    let state = Arc::new(Shared::default());
    let keeper_state = Arc::clone(&state);
    thread::Builder::new()
        .name("process-keeper".to_owned())
        .spawn(move || match start(request) {
            Err(error) => {
                let _ = started_sender.send(Err(error));
            }
            Ok((child, output_done)) => {
                let pid = child.id();
                keeper_state.lock().pid = raw_pid(pid);
                let identity = Identity::of(pid).unwrap_or_else(|| Identity {
                    pid,
                    ..Identity::own()
                });
                let _ = started_sender.send(Ok(identity));
                keep(child, lifetime, &keeper_state, output_done, on_exit);
            }
        })
        .map_err(SpawnError::Thread)?;
    let identity = started.recv().expect("the keeper answers before it ends")?;
    Ok(Child {
        identity,
        lifetime,
        state,
    })
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The child's id, as long as it has not been reaped.
    pid: Option<Pid>,
    ended: Option<Exit>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The sections under this lock cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) -> bool {
        let state = self.lock();
        let Some(pid) = state.pid else { return false };
        rustix::process::kill_process_group(pid, signal).is_ok()
    }
}

/// Waits for the child's end on the thread that forked it.
fn keep(
    mut child: std::process::Child,
    lifetime: Lifetime,
    shared: &Shared,
    output_done: Option<mpsc::Receiver<()>>,
    on_exit: impl FnOnce(Exit),
) {
    if let Some(pid) = raw_pid(child.id()) {
        // Leaves the child unreaped, so that its id and its group still belong to it when they are killed below.
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
    }
    if lifetime == Lifetime::Tied {
        shared.signal(Signal::KILL);
    }
    let exit = {
        let mut state = shared.lock();
        state.pid = None;
        child.wait().map_or(
            Exit {
                code: None,
                signal: None,
            },
            Exit::from,
        )
    };
    if let Some(done) = output_done {
        let _ = done.recv_timeout(OUTPUT_DRAIN_MAX);
    }
    shared.lock().ended = Some(exit);
    shared.changed.notify_all();
    on_exit(exit);
}

type Started = (std::process::Child, Option<mpsc::Receiver<()>>);

fn start(request: Request) -> Result<Started, SpawnError> {
    let Request {
        mut command,
        lifetime,
        output,
    } = request;
    command.stdin(Stdio::null());
    let pump = connect_output(&mut command, output)?;
    in_own_session(&mut command, lifetime);
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command
        .spawn()
        .map_err(|source| SpawnError::Start { program, source })?;
    // The command holds the writing end of the pipe; the reader would never see its end.
    drop(command);
    let output_done = match pump {
        None => None,
        Some(pump) => {
            let (done, finished) = mpsc::sync_channel(1);
            thread::Builder::new()
                .name("process-output".to_owned())
                .spawn(move || {
                    pump.run();
                    let _ = done.send(());
                })
                .map_err(SpawnError::Thread)?;
            Some(finished)
        }
    };
    Ok((child, output_done))
}

fn connect_output(command: &mut Command, output: Output) -> Result<Option<Pump>, SpawnError> {
    match output {
        Output::Discard => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Ok(None)
        }
        Output::Lines(on_line) => {
            let (reader, writer) = io::pipe().map_err(SpawnError::Pipe)?;
            command
                .stdout(writer.try_clone().map_err(SpawnError::Pipe)?)
                .stderr(writer);
            Ok(Some(Pump {
                reader,
                log: None,
                on_line: Some(on_line),
                line: Vec::new(),
            }))
        }
        Output::File { path, bytes_max } => {
            let open = || -> io::Result<_> {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                let file = std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&path)?;
                if file.metadata()?.len() > bytes_max {
                    file.set_len(0)?;
                }
                Ok((file.try_clone()?, file))
            };
            let (stdout, stderr) = open().map_err(|source| SpawnError::Log {
                path: path.clone(),
                source,
            })?;
            command.stdout(stdout).stderr(stderr);
            Ok(None)
        }
        Output::Log {
            path,
            bytes_max,
            on_line,
        } => {
            let open = || -> io::Result<_> {
                let log = BoundedLog::open(&path, bytes_max)?;
                let (reader, writer) = io::pipe()?;
                Ok((log, reader, writer.try_clone()?, writer))
            };
            let (log, reader, stdout, stderr) = open().map_err(|source| SpawnError::Log {
                path: path.clone(),
                source,
            })?;
            command.stdout(stdout).stderr(stderr);
            Ok(Some(Pump {
                reader,
                log: Some(log),
                on_line,
                line: Vec::new(),
            }))
        }
    }
}

#[expect(unsafe_code, reason = "pre_exec is the only way to act between fork and exec")]
fn in_own_session(command: &mut Command, lifetime: Lifetime) {
    let parent = rustix::process::getpid();
    let prepare = move || -> io::Result<()> {
        rustix::process::setsid()?;
        rustix::process::setrlimit(
            Resource::Core,
            Rlimit {
                current: Some(0),
                maximum: Some(0),
            },
        )?;
        if lifetime == Lifetime::Tied {
            die_with(parent)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only functions that are safe after a fork of a threaded process may run. `prepare`
    // makes system calls through rustix and nothing else: it takes no lock, allocates nothing (io::Error from an errno
    // is a plain value) and touches no memory but its own captured copies.
    unsafe {
        command.pre_exec(prepare);
    }
}

#[cfg(target_os = "linux")]
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the call; then the signal would never come.
    if rustix::process::getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH.into());
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn die_with(_parent: Pid) -> io::Result<()> {
    Ok(())
}

/// Carries a child's output into its log.
struct Pump {
    reader: PipeReader,
    log: Option<BoundedLog>,
    on_line: Option<LineTap>,
    line: Vec<u8>,
}

impl Pump {
    fn run(mut self) {
        let mut buffer = [0_u8; 16 * 1024];
        loop {
            let count = match self.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            // A full disk must not stop the engine: its output is then lost, and read all the same.
            let _ = self.log.as_mut().map(|log| log.write_all(&buffer[..count]));
            self.tap(&buffer[..count]);
        }
        self.end_line();
    }

    fn tap(&mut self, bytes: &[u8]) {
        if self.on_line.is_none() {
            return;
        }
        for &byte in bytes {
            // A carriage return ends a line as well: progress on a terminal is written that way.
            if matches!(byte, b'\n' | b'\r') {
                self.end_line();
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        if let Some(on_line) = &mut self.on_line
            && !self.line.is_empty()
        {
            on_line(&String::from_utf8_lossy(&self.line));
        }
        self.line.clear();
    }
}
