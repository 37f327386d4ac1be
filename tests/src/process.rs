//! Built programs as child processes.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Deadline, eventually};

/// A built program of this workspace, of the same profile as the one that asks.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program has a path");
    // target/PROFILE/deps/test or target/PROFILE/program
    let directory = own.parent().expect("it is in a directory");
    let directory = directory
        .parent()
        .filter(|_| directory.ends_with("deps"))
        .unwrap_or(directory);
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` first",
        path.display()
    );
    path
}

/// A running program. Dropping it ends it and whatever it has started in its process group.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command` in a process group of its own, with its output in `log`.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file");
        let errors = output.try_clone().expect("a second handle");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for a line of its output and gives what `read` finds in it.
    pub fn wait_for<T>(&mut self, what: &str, mut read: impl FnMut(&str) -> Option<T>) -> T {
        let what = format!("{} of {}", what, self.name);
        eventually(&what, Deadline::default(), || {
            let output = self.output();
            if let Some(found) = output.lines().find_map(&mut read) {
                return Some(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!(
                    "{} has ended with {status} while it was waited for {what}:\n{output}",
                    self.name
                );
            }
            None
        })
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id");
        // It may have ended by itself, which the test will see.
        let _ = kill_process(pid, signal);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, Deadline::default(), || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.pid().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {} ----\n{}", self.name, self.output());
        }
    }
}

/// `kill -9` of a process that a program under test has started.
pub fn kill_9(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process that a program under test has started.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    // It may be gone already, which the test will see.
    let _ = kill_process(pid, signal);
}

/// Whether a process is there and not merely waiting for its parent.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// The living processes of a given name in whose environment `mark` is: a variable that a test gives a program is
/// inherited by all that the program starts.
pub fn processes_with(mark: &Path, name: &str) -> Vec<u32> {
    let mark = mark.as_os_str().as_encoded_bytes();
    let ids = std::fs::read_dir("/proc").expect("a system with /proc").flatten();
    let ids = ids.filter_map(|process| process.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        let short = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        // A name in /proc has 15 letters at the most.
        short.trim_end() == &name[..name.len().min(15)]
            && environment.windows(mark.len()).any(|window| window == mark)
            && is_alive(*id)
    })
    .collect()
}
