//! The driver `bubblewrap`: namespaces, no daemon.
//!
//! Everything inside is new: users, mounts, processes, IPC, host name, network, cgroups. Of the host there are `/usr` and
//! the public certificates, read-only. What can be written is memory with a bound. Init is process 1, so its end is the
//! end of everything in there.
//!
//! As root, `bwrap` runs as an ordinary user, one for each sandbox, so nothing inside is root outside and no two
//! sandboxes are the same user. What they are given is staged first (`process::prepare::stage`), because such a user
//! reaches nothing below a private directory.
//!
//! A sandbox does not end with this process. One file for each says what there is, before there is anything:
//!
//! ```text
//! create: write {user, cgroups} ─▶ cgroups ─▶ bwrap ─▶ write {.., processes}     destroy: kill ─▶ cgroups ─▶ file
//! ```

mod arguments;
mod marked;
mod state;
#[cfg(test)]
mod tests;

use std::io::{self, Read as _};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use process::{Identity, Lifetime, Output, prepare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::SandboxId;
use crate::cgroup::{self, Cgroups};
use crate::driver::{CreateRequest, Created, Door, Driver, DriverError, Found, describe};
use state::{Record, Records};

/// How long `bwrap` may take until its child exists.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long `bwrap` may take to end after its child.
const REAP_TIMEOUT: Duration = Duration::from_secs(2);

/// How large the output of `bwrap` and init may be before it is emptied.
const LOG_BYTES_MAX: u64 = 64 * 1024;

/// How this driver works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BubblewrapSettings {
    /// The program.
    pub program: PathBuf,
    /// Where its state is; made if it is missing. A restarted node with the same directory finds its sandboxes again.
    pub directory: PathBuf,
    /// The users that sandboxes run as when this is root; they should be nobody else's.
    pub users: Range<u32>,
}

impl BubblewrapSettings {
    /// The usual ones.
    pub fn new(directory: &Path) -> Self {
        Self {
            program: PathBuf::from("bwrap"),
            directory: directory.to_owned(),
            users: 2_000_000_000..2_000_065_536,
        }
    }
}

/// The driver. Clones are the same.
#[derive(Debug, Clone)]
pub struct Bubblewrap {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: BubblewrapSettings,
    records: Records,
    cgroups: Cgroups,
    is_root: bool,
}

impl Bubblewrap {
    /// Looks what there is.
    ///
    /// # Errors
    /// [`DriverError::Unusable`] when there is no bubblewrap; [`DriverError::Io`].
    pub fn new(settings: BubblewrapSettings) -> Result<Self, DriverError> {
        let output = Command::new(&settings.program).arg("--version").output();
        if !output.is_ok_and(|output| output.status.success()) {
            return Err(DriverError::Unusable(format!(
                "there is no {}; on Debian it is in the package bubblewrap",
                settings.program.display()
            )));
        }
        let records = Records::open(&settings.directory, settings.users.clone())
            .map_err(DriverError::io("read the state of the sandboxes"))?;
        let cgroups = Cgroups::find();
        cgroups.sweep();
        Ok(Self {
            inner: Arc::new(Inner {
                cgroups,
                is_root: rustix::process::geteuid().is_root(),
                records,
                settings,
            }),
        })
    }

    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, DriverError> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, DriverError>> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::task::spawn_blocking(move || work(&inner));
        async move {
            task.await.unwrap_or_else(|error| {
                Err(DriverError::Io {
                    what: "finish a task of the driver",
                    source: io::Error::other(error),
                })
            })
        }
        .boxed()
    }
}

impl Driver for Bubblewrap {
    fn name(&self) -> &'static str {
        "bubblewrap"
    }

    /// What it needs was there when it was opened.
    fn check<'a>(&'a self, _image: Option<&'a str>) -> BoxFuture<'a, Result<(), DriverError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn create(&self, request: CreateRequest) -> BoxFuture<'_, Result<Created, DriverError>> {
        self.blocking(move |inner| inner.create(&request))
    }

    fn destroy<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), DriverError>> {
        let id = id.clone();
        self.blocking(move |inner| inner.destroy(&id))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>> {
        self.blocking(Inner::list)
    }
}

impl Inner {
    fn create(&self, request: &CreateRequest) -> Result<Created, DriverError> {
        let start = Instant::now();
        let record = self
            .records
            .reserve(&request.id, self.is_root, self.cgroups.directories(&request.id))
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => DriverError::Taken(request.id.clone()),
                _ => DriverError::io("write the state of a sandbox")(error),
            })?;
        let started = self.start(request, &record).and_then(|(outer, inner)| {
            let written = self.records.started(&request.id, record.clone(), &outer, &inner);
            written.map_err(|error| {
                // Nobody else knows of it.
                end(&inner, &outer);
                DriverError::io("write the state of a sandbox")(error)
            })
        });
        match started {
            Ok(()) => Ok(Created {
                took: start.elapsed(),
            }),
            Err(error) => {
                if let Err(error) = self.clear(&request.id, &record) {
                    tracing::warn!(sandbox = %request.id, error = &error as &dyn std::error::Error, "what is left of a sandbox cannot be removed");
                }
                Err(error)
            }
        }
    }

    fn start(&self, request: &CreateRequest, record: &Record) -> Result<(Identity, Identity), DriverError> {
        let Door::Directory(door) = &request.connect.door else {
            return Err(DriverError::Unusable(
                "a bubblewrap sandbox has no network to reach a TLS port by".to_owned(),
            ));
        };
        let joins = self
            .cgroups
            .create(&request.id, &request.limits)
            .map_err(DriverError::io("make the cgroups of a sandbox"))?;
        let io = |what| DriverError::io(what);
        let sources = arguments::Sources::of(request, door);
        let (info, info_writer) = io::pipe().map_err(io("make a pipe"))?;
        let mut files = arguments::Files::default();
        let limits = request.limits.for_processes(true, !self.cgroups.limits_memory());
        let arguments = arguments::arguments(request, &sources, self.is_root, limits, &mut files)
            .map_err(io("write the files of a sandbox"))?;
        let argument_file = arguments::memory_file(&arguments).map_err(io("make a memory file"))?;

        let mut command = Command::new(&self.settings.program);
        command
            .env_clear()
            .env(marked::VARIABLE, self.records.path(&request.id))
            .current_dir("/")
            .arg("--args")
            .arg(argument_file.as_raw_fd().to_string())
            .arg("--info-fd")
            .arg(info_writer.as_raw_fd().to_string())
            .arg(arguments::INIT_PATH)
            .args(&request.init.arguments);
        if let Some(path) = std::env::var_os("PATH") {
            // Where bwrap itself is looked for; the sandbox's own PATH is another.
            command.env("PATH", path);
        }
        let mut open: Vec<OwnedFd> = files.into_files();
        open.extend([argument_file, info_writer.into()]);
        prepare::close_others(&mut command);
        prepare::keep_open(&mut command, open);
        prepare::join_cgroups(&mut command, joins);
        if let Some(user) = record.user {
            prepare::stage(&mut command, arguments::STAGE.to_owned(), sources.staged())
                .map_err(io("stage the files of a sandbox"))?;
            prepare::become_user(&mut command, user, user);
        }
        let log = self.records.log(&request.id);
        let child = process::spawn(
            process::Request {
                command,
                lifetime: Lifetime::Detached,
                output: Output::File {
                    path: log.clone(),
                    bytes_max: LOG_BYTES_MAX,
                },
            },
            |_| {},
        )
        .map_err(|error| DriverError::Create {
            id: request.id.clone(),
            why: describe(&error),
        })?;
        let outer = child.identity().clone();
        let inner = read_child(info).and_then(Identity::of).ok_or_else(|| {
            child.kill();
            DriverError::Create {
                id: request.id.clone(),
                why: process::log::tail(&log, 3).join("; "),
            }
        })?;
        Ok((outer, inner))
    }

    fn destroy(&self, id: &SandboxId) -> Result<(), DriverError> {
        // One that is still being made will find that it was given up, and ends what it has started since.
        self.records.give_up(id);
        let record = self
            .records
            .read(id)
            .map_err(DriverError::io("read the state of a sandbox"))?;
        record.map_or(Ok(()), |record| self.clear(id, &record))
    }

    /// Ends what there is of a sandbox and forgets it.
    fn clear(&self, id: &SandboxId, record: &Record) -> Result<(), DriverError> {
        if let Some(inner) = &record.inner {
            process::terminate(inner, Duration::ZERO).map_err(DriverError::io("end a sandbox"))?;
        }
        if let Some(outer) = &record.outer {
            // It ends by itself once it has reaped its child. Ending it earlier would leave that to the machine's process
            // 1, which in a container reaps nobody.
            if record.inner.is_some() {
                process::wait_until_gone(outer, REAP_TIMEOUT);
            }
            process::terminate(outer, Duration::ZERO).map_err(DriverError::io("end a sandbox"))?;
        }
        if record.inner.is_none() {
            // A start that was broken off: nobody wrote down what there is.
            marked::end(&self.records.path(id)).map_err(DriverError::io("end a half-made sandbox"))?;
        }
        for directory in &record.cgroups {
            // Only a start that was broken off leaves any.
            for pid in cgroup::processes(directory) {
                if let Some(process) = Identity::of(pid) {
                    let _ = process::terminate(&process, Duration::ZERO);
                }
            }
            cgroup::remove(directory).map_err(DriverError::io("remove the cgroup of a sandbox"))?;
        }
        self.records
            .remove(id)
            .map_err(DriverError::io("remove the state of a sandbox"))
    }

    fn list(&self) -> Result<Vec<Found>, DriverError> {
        let mut found = Vec::new();
        let all = self
            .records
            .all()
            .map_err(DriverError::io("read the state of the sandboxes"))?;
        for (id, record) in all {
            if record.is_alive() {
                found.push(Found {
                    created: record.created(),
                    id,
                });
            } else if !self.records.is_being_made(&id) {
                self.destroy(&id)?;
            }
        }
        Ok(found)
    }
}

/// Ends a sandbox of which there is no record. What cannot be ended ends by itself: init has nobody to speak with.
fn end(inner: &Identity, outer: &Identity) {
    for process in [inner, outer] {
        let _ = process::terminate(process, Duration::ZERO);
    }
}

/// The process id that `bwrap` tells of its child, which is process 1 inside.
fn read_child(mut info: io::PipeReader) -> Option<u32> {
    let end = Instant::now() + START_TIMEOUT;
    let mut text = Vec::new();
    let mut buffer = [0_u8; 512];
    loop {
        let timeout = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&info, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match info.read(&mut buffer).ok()? {
            0 => return None,
            count => text.extend_from_slice(&buffer[..count]),
        }
        if let Ok(info) = serde_json::from_slice::<serde_json::Value>(&text) {
            return info.get("child-pid")?.as_u64()?.try_into().ok();
        }
        if text.len() > 64 * 1024 {
            return None;
        }
    }
}
