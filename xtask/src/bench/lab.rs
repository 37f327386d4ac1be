//! Processes on pinned cores, and what the kernel says of them.
//!
//! Every process is the first of its own process group. It is ended when its handle is dropped: by a polite signal,
//! then by a hard one. Nothing else is ever signalled.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};

use super::binary;

/// Ten thousand streams are twenty thousand files to a gateway.
const FILES_WANTED: u64 = 65_536;
/// How long a process may take until it answers.
const START_TIME_MAX: Duration = Duration::from_secs(60);
const STOP_TIME_MAX: Duration = Duration::from_secs(3);

/// A temporary directory, the cores, and names for files.
#[derive(Debug)]
pub(super) struct Lab {
    directory: tempfile::TempDir,
    gateway_core: u32,
    load_core: u32,
    files_max: u64,
    names: AtomicU32,
}

impl Lab {
    pub(super) fn new(gateway_core: u32, load_core: u32) -> Result<Self> {
        let files_max = raise_file_limit();
        let directory = tempfile::Builder::new().prefix("remuda-bench-").tempdir()?;
        Ok(Self {
            directory,
            gateway_core,
            load_core,
            files_max,
            names: AtomicU32::new(0),
        })
    }

    /// How many streams a gateway can hold within the limit on open files: two files for each, and some beside.
    pub(super) fn streams_max(&self) -> u32 {
        u32::try_from(self.files_max.saturating_sub(200) / 2).unwrap_or(u32::MAX)
    }

    /// A new directory that goes away with the lab.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("{number}-{name}"));
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Starts `command` on the gateways' core.
    pub(super) fn gateway(&self, name: &str, command: &Command) -> Result<Process> {
        Process::start(name, command, self.gateway_core, &self.directory(name)?)
    }

    /// Starts the stand-in for an engine on the load's core.
    pub(super) fn engine(&self) -> Result<Engine> {
        let port = free_port()?;
        let mut command = Command::new(binary("fake-engine")?);
        command.args(["--slots", "100000", "--port", &port.to_string()]);
        let process = Process::start(
            "fake-engine",
            &command,
            self.load_core,
            &self.directory("fake-engine")?,
        )?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        process.wait_until(|| get(address, "/health", None).is_ok_and(|answer| answer.status == 200))?;
        Ok(Engine {
            address,
            _process: process,
        })
    }

    /// Runs the load generator to its end and returns what it printed.
    pub(super) fn load(
        &self,
        address: SocketAddr,
        key: &str,
        arguments: &[String],
    ) -> Result<serde_json::Value> {
        let mut load = self.start_load(address, key, arguments)?;
        drop(load.child.stdin.take());
        load.finish()
    }

    /// Starts the load generator in one of the modes that say `ready` and then wait.
    pub(super) fn start_load(&self, address: SocketAddr, key: &str, arguments: &[String]) -> Result<Load> {
        let mut command = pinned(binary("loadgen")?.as_os_str(), self.load_core);
        command
            .args(["--address", &address.to_string(), "--key", key])
            .args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().context("starting the load generator")?;
        let output = BufReader::new(child.stdout.take().context("its output is piped")?);
        Ok(Load { child, output })
    }
}

/// The engine behind all gateways.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) address: SocketAddr,
    _process: Process,
}

/// A load generator at work.
#[derive(Debug)]
pub(super) struct Load {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Load {
    /// Waits until everything stands.
    pub(super) fn wait_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the load generator did not get ready: {}", self.errors());
        }
        Ok(())
    }

    /// Tells it to stop, and returns what it printed. It bounds its own time.
    pub(super) fn finish(mut self) -> Result<serde_json::Value> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.output.read_to_string(&mut text)?;
        if !self.child.wait()?.success() {
            bail!("the load generator failed: {}", self.errors());
        }
        serde_json::from_str(text.trim()).with_context(|| format!("the load generator printed {text:?}"))
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            // What cannot be read is left out of the message.
            let _ = errors.read_to_string(&mut text);
        }
        text.trim().to_owned()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Once it has been waited for, its id may be somebody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            stop(&mut self.child);
        }
    }
}

/// A process of the lab, with its children.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(name: &str, command: &Command, core: u32, directory: &Path) -> Result<Self> {
        let mut pinned = pinned(command.get_program(), core);
        pinned.args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => pinned.env(key, value),
                None => pinned.env_remove(key),
            };
        }
        let log = directory.join("log");
        let output = File::create(&log)?;
        pinned.current_dir(command.get_current_dir().unwrap_or(directory));
        pinned
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let child = pinned.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Waits until `holds`, while the process lives and its time is not over.
    pub(super) fn wait_until(&self, holds: impl Fn() -> bool) -> Result<()> {
        let until = Instant::now() + START_TIME_MAX;
        while !holds() {
            if !Path::new(&format!("/proc/{}/exe", self.child.id())).exists() || Instant::now() > until {
                bail!("{} does not answer: {}", self.name, self.last_words());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Processor time of the process and its children so far, thread by thread.
    pub(super) fn cpu_time(&self) -> Result<CpuTime> {
        let mut threads = BTreeMap::new();
        for pid in tree(self.child.id())? {
            // A process or thread may end while it is being read; then it is not there.
            let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for entry in entries.flatten() {
                let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else {
                    continue;
                };
                let nanos = text
                    .split(' ')
                    .next()
                    .and_then(|field| field.parse::<u64>().ok())
                    .unwrap_or(0);
                threads.insert(entry.file_name().to_string_lossy().into_owned(), nanos);
            }
        }
        if threads.is_empty() {
            bail!("{} has ended: {}", self.name, self.last_words());
        }
        Ok(CpuTime(threads))
    }

    /// Resident memory of the process and its children.
    pub(super) fn resident_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in tree(self.child.id())? {
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                continue;
            };
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            sum += line
                .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(sum)
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Processor time by thread, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct CpuTime(BTreeMap<String, u64>);

impl CpuTime {
    /// Takes another process's threads in.
    pub(super) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What was used since `earlier`, by the threads that still live.
    pub(super) fn since(&self, earlier: &Self) -> Duration {
        let nanos = self
            .0
            .iter()
            .map(|(thread, now)| now - earlier.0.get(thread).unwrap_or(&0).min(now));
        Duration::from_nanos(nanos.sum())
    }
}

/// What an HTTP server answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// A GET in its simplest form.
pub(super) fn get(address: SocketAddr, path: &str, key: Option<&str>) -> Result<Answer> {
    let authorization = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{authorization}connection: close\r\n\r\n"),
    )
}

/// Asks for an answer of the model, as a client would.
pub(super) fn ask(address: SocketAddr, key: &str) -> Result<Answer> {
    let body = r#"{"model":"fake","messages":[{"role":"user","content":"hello"}]}"#;
    exchange(
        address,
        &format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

fn exchange(address: SocketAddr, request: &str) -> Result<Answer> {
    let time = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, time)?;
    stream.set_read_timeout(Some(time))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("no HTTP answer")?;
    let body = text
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body)
        .to_owned();
    Ok(Answer { status, body })
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// `program` on one core. It is ended by the kernel when this process is killed.
fn pinned(program: &OsStr, core: u32) -> Command {
    // Each becomes the next, so the process id is the program's.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "taskset", "--cpu-list", &core.to_string()])
        .arg(program);
    command
}

/// A process and all that come from it.
fn tree(root: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // The name in brackets may hold anything; the parent is the second field after it.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        found.extend(children.get(&found[at]).into_iter().flatten());
        at += 1;
    }
    Ok(found)
}

fn stop(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(group) = group else { return };
    // Until it is waited for, the id stays the child's own.
    for signal in [Signal::TERM, Signal::KILL] {
        // Fails only when nobody is left in the group.
        let _ = kill_process_group(group, signal);
        let until = Instant::now() + STOP_TIME_MAX;
        while Instant::now() < until {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Raises the limit on open files as far as it goes, for the children, and returns it.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map(|maximum| maximum.max(FILES_WANTED));
    // Beyond the hard limit only with a capability that few have.
    if setrlimit(
        Resource::Nofile,
        Rlimit {
            current: wanted,
            maximum: wanted,
        },
    )
    .is_err()
    {
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        );
    }
    getrlimit(Resource::Nofile).current.unwrap_or(FILES_WANTED)
}
