//! What `bwrap` is told.
//!
//! All of it goes through a memory file (`--args`), because the environment in it holds the token.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use init_protocol::{ProcessLimits, START_VARIABLE};
use process::prepare::Staged;

use crate::driver::{CreateRequest, base_environment};
use crate::{AGENT_DIRECTORY, DOOR_DIRECTORY, HOME, SANDBOX_UID, WORKSPACE};

/// Where init is in a sandbox.
pub(super) const INIT_PATH: &str = "/opt/remuda-init";

/// The directory that holds what is staged. Every system has it, and `bwrap` does not use what is in it.
pub(super) const STAGE: &CStr = c"/tmp";

/// Public certificates, as a file that programs with a TLS library of the system look for.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What is shown of the host besides `/usr`: where it is, its name in the stage, where it appears.
pub(super) struct Sources(Vec<Source>);

struct Source {
    path: PathBuf,
    name: &'static CStr,
    target: &'static str,
    is_directory: bool,
}

impl Sources {
    pub(super) fn of(request: &CreateRequest, door: &Path) -> Self {
        let source = |path: &Path, name, target, is_directory| Source {
            path: path.to_owned(),
            name,
            target,
            is_directory,
        };
        let mut sources = vec![
            source(&request.init.path, c"init", INIT_PATH, false),
            source(door, c"door", DOOR_DIRECTORY, true),
        ];
        if let Some(agent) = &request.agent_directory {
            sources.push(source(agent, c"agent", AGENT_DIRECTORY, true));
        }
        if Path::new(CERTIFICATES).is_file() {
            sources.push(source(
                Path::new(CERTIFICATES),
                c"certificates",
                CERTIFICATES,
                false,
            ));
        }
        Self(sources)
    }

    pub(super) fn staged(&self) -> Vec<Staged> {
        self.0
            .iter()
            .map(|source| Staged {
                // A path with a zero byte exists nowhere, as does the empty one.
                source: CString::new(source.path.as_os_str().as_bytes()).unwrap_or_default(),
                is_directory: source.is_directory,
                name: source.name.to_owned(),
            })
            .collect()
    }
}

/// Files that `bwrap` reads by their numbers.
#[derive(Default)]
pub(super) struct Files(Vec<OwnedFd>);

impl Files {
    fn add(&mut self, content: &[u8]) -> io::Result<String> {
        let file = memory_file(content)?;
        let number = file.as_raw_fd().to_string();
        self.0.push(file);
        Ok(number)
    }

    pub(super) fn into_files(self) -> Vec<OwnedFd> {
        self.0
    }
}

/// A file in memory, to be read from its beginning.
pub(super) fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(c"sandbox", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// The arguments, each ended by a zero byte.
pub(super) fn arguments(
    request: &CreateRequest,
    sources: &Sources,
    is_staged: bool,
    limits: ProcessLimits,
    files: &mut Files,
) -> io::Result<Vec<u8>> {
    let mut list = List::default();
    let user = SANDBOX_UID.to_string();
    for namespace in ["user", "pid", "ipc", "uts", "net"] {
        list.add([format!("--unshare-{namespace}")]);
    }
    list.add([
        "--unshare-cgroup-try",
        "--as-pid-1",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]);
    list.add(["--uid", &user, "--gid", &user, "--hostname", "sandbox"]);
    system(&mut list);
    list.add(["--proc", "/proc", "--dev", "/dev"]);
    let limits_of = &request.limits;
    memory(&mut list, "1777", limits_of.tmp_bytes_max / 4, "/dev/shm");
    memory(&mut list, "1777", limits_of.tmp_bytes_max, "/tmp");
    memory(&mut list, "0700", limits_of.home_bytes_max, HOME);
    memory(&mut list, "0700", limits_of.workspace_bytes_max, WORKSPACE);
    for source in &sources.0 {
        let path = if is_staged {
            Path::new(OsStr::from_bytes(STAGE.to_bytes())).join(OsStr::from_bytes(source.name.to_bytes()))
        } else {
            source.path.clone()
        };
        list.add([
            OsStr::new("--ro-bind"),
            path.as_os_str(),
            OsStr::new(source.target),
        ]);
    }
    for (path, content) in [
        ("/etc/passwd", format!("agent:x:{user}:{user}::{HOME}:/bin/sh\n")),
        ("/etc/group", format!("agent:x:{user}:\n")),
        (
            "/etc/hosts",
            "127.0.0.1 localhost sandbox\n::1 localhost\n".to_owned(),
        ),
        (
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n".to_owned(),
        ),
    ] {
        let number = files.add(content.as_bytes())?;
        list.add(["--perms", "0444", "--ro-bind-data", &number, path]);
    }
    // What is not memory with a bound of its own must not be written at all: these two would be without one.
    list.add(["--remount-ro", "/dev", "--remount-ro", "/"]);
    list.add(["--chdir", "/", "--clearenv"]);
    let start = request.connect.start_variable(&request.id, limits);
    for (name, value) in base_environment(&request.environment) {
        list.add(["--setenv", &name, &value]);
    }
    list.add(["--setenv", START_VARIABLE, &start]);
    list.finish()
}

/// The host's programs, as its own layout has them.
fn system(list: &mut List) {
    list.add(["--ro-bind", "/usr", "/usr"]);
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match std::fs::read_link(&path) {
            Ok(target) => list.add([OsStr::new("--symlink"), target.as_os_str(), path.as_os_str()]),
            Err(_) if path.is_dir() => {
                list.add([OsStr::new("--ro-bind"), path.as_os_str(), path.as_os_str()]);
            }
            Err(_) => {}
        }
    }
}

fn memory(list: &mut List, mode: &str, bytes: u64, path: &str) {
    list.add([
        "--perms",
        mode,
        "--size",
        &bytes.max(4096).to_string(),
        "--tmpfs",
        path,
    ]);
}

#[derive(Default)]
struct List {
    bytes: Vec<u8>,
    has_zero: bool,
}

impl List {
    fn add<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) {
        for argument in arguments {
            let argument = argument.as_ref().as_bytes();
            self.has_zero |= argument.contains(&0);
            self.bytes.extend_from_slice(argument);
            self.bytes.push(0);
        }
    }

    /// A zero byte inside an argument would begin another one.
    fn finish(self) -> io::Result<Vec<u8>> {
        if self.has_zero {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a path or an environment holds a zero byte",
            ));
        }
        Ok(self.bytes)
    }
}
