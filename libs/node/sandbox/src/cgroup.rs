//! Limits by cgroup, version 1 and 2, where this process may set them.
//!
//! Below the cgroup that this process is in, a directory `remuda` holds one for each sandbox. A daemon in a systemd
//! service needs `Delegate=yes` and, for version 2, `DelegateSubgroup=`: a version-2 cgroup that has processes of its own
//! can pass no limits down.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{Limits, SandboxId};

/// How long a cgroup's last processes may take to be gone.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a cgroup must have been there before it counts as forgotten.
const UNUSED_MIN: Duration = Duration::from_secs(120);

/// The period over which CPU time is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// What keeps sandboxes within a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// A cgroup of version 2, for all processes together.
    CgroupV2,
    /// A cgroup of version 1, for all processes together.
    CgroupV1,
    /// A limit of each process, or of all processes of the sandbox's user.
    Rlimit,
    /// Nothing.
    None,
}

/// What keeps sandboxes within each limit on this machine, for `doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Enforcements {
    /// Memory. By rlimit each process may have as much as the sandbox should have.
    pub memory: Enforcement,
    /// Processes.
    pub processes: Enforcement,
    /// CPU time.
    pub cpu: Enforcement,
    /// Open files.
    pub open_files: Enforcement,
}

/// Finds out what keeps sandboxes of this process within their limits.
pub fn enforcements() -> Enforcements {
    Cgroups::find().enforcements()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }

    /// Its files and what is to be written into them. Only the first must exist.
    fn settings(self, version: Version, limits: &Limits) -> Vec<(&'static str, String)> {
        let quota = limits.cpu_milli.saturating_mul(CPU_PERIOD_US / 1000).max(1000);
        match (self, version) {
            (Self::Memory, Version::V1) => {
                vec![("memory.limit_in_bytes", limits.memory_bytes_max.to_string())]
            }
            (Self::Memory, Version::V2) => vec![
                ("memory.max", limits.memory_bytes_max.to_string()),
                ("memory.swap.max", "0".to_owned()),
            ],
            (Self::Pids, _) => vec![("pids.max", limits.processes_max.to_string())],
            (Self::Cpu, Version::V1) => vec![
                ("cpu.cfs_quota_us", quota.to_string()),
                ("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
            ],
            (Self::Cpu, Version::V2) => vec![("cpu.max", format!("{quota} {CPU_PERIOD_US}"))],
        }
    }
}

/// The cgroups below which this process may make others.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    bases: Vec<Base>,
}

#[derive(Debug)]
struct Base {
    version: Version,
    directory: PathBuf,
    controllers: Vec<Controller>,
}

impl Cgroups {
    /// Those of this machine that can be used.
    pub(crate) fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut bases: Vec<Base> = Vec::new();
        for (version, directory, wanted) in candidates(&mounts, &own) {
            let taken =
                |controller: &Controller| bases.iter().any(|base| base.controllers.contains(controller));
            let wanted: Vec<_> = wanted
                .into_iter()
                .filter(|controller| !taken(controller))
                .collect();
            let below = directory.join("remuda");
            if wanted.is_empty() || make(version, &directory, &below).is_err() {
                continue;
            }
            let controllers: Vec<_> = wanted
                .into_iter()
                .filter(|controller| can_set(*controller, version, &below))
                .collect();
            if !controllers.is_empty() {
                bases.push(Base {
                    version,
                    directory: below,
                    controllers,
                });
            }
        }
        Self { bases }
    }

    /// Removes cgroups in which nothing runs and whose sandbox nobody remembers, because its record went with a directory.
    /// Young ones may be about to be joined by a node that starts; one with processes cannot be removed.
    pub(crate) fn sweep(&self) {
        for base in &self.bases {
            for entry in fs::read_dir(&base.directory).into_iter().flatten().flatten() {
                let age = entry
                    .metadata()
                    .and_then(|metadata| metadata.modified())
                    .ok()
                    .and_then(|modified| modified.elapsed().ok());
                if age.is_some_and(|age| age > UNUSED_MIN) && entry.path().is_dir() {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    fn enforcements(&self) -> Enforcements {
        let of = |controller, otherwise| {
            self.bases
                .iter()
                .find(|base| base.controllers.contains(&controller))
                .map_or(otherwise, |base| match base.version {
                    Version::V1 => Enforcement::CgroupV1,
                    Version::V2 => Enforcement::CgroupV2,
                })
        };
        Enforcements {
            memory: of(Controller::Memory, Enforcement::Rlimit),
            processes: of(Controller::Pids, Enforcement::Rlimit),
            cpu: of(Controller::Cpu, Enforcement::None),
            open_files: Enforcement::Rlimit,
        }
    }

    /// Whether memory is limited here.
    pub(crate) fn limits_memory(&self) -> bool {
        self.bases
            .iter()
            .any(|base| base.controllers.contains(&Controller::Memory))
    }

    /// The directories of a sandbox's cgroups, made or not.
    pub(crate) fn directories(&self, id: &SandboxId) -> Vec<PathBuf> {
        self.bases
            .iter()
            .map(|base| base.directory.join(id.as_str()))
            .collect()
    }

    /// Makes them with their limits. The files through which a process joins them.
    pub(crate) fn create(&self, id: &SandboxId, limits: &Limits) -> io::Result<Vec<File>> {
        let mut joins = Vec::new();
        for base in &self.bases {
            let directory = base.directory.join(id.as_str());
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            for controller in &base.controllers {
                for (position, (file, value)) in
                    controller.settings(base.version, limits).into_iter().enumerate()
                {
                    let written = fs::write(directory.join(file), value);
                    if position == 0 {
                        written?;
                    }
                }
            }
            joins.push(
                OpenOptions::new()
                    .write(true)
                    .open(directory.join("cgroup.procs"))?,
            );
        }
        Ok(joins)
    }
}

/// Removes a cgroup whose processes have ended, or are about to. One that is not there is no error.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    let end = Instant::now() + REMOVE_TIMEOUT;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// The processes in a cgroup.
pub(crate) fn processes(directory: &Path) -> Vec<u32> {
    fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

fn make(version: Version, directory: &Path, below: &Path) -> io::Result<()> {
    if version == Version::V2 {
        // Refused where this cgroup has processes of its own; what the parent passes down may be enough all the same.
        pass_down(directory);
    }
    match fs::create_dir(below) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if version == Version::V2 {
        pass_down(below);
    }
    Ok(())
}

fn pass_down(directory: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(
            directory.join("cgroup.subtree_control"),
            format!("+{}", controller.name()),
        );
    }
}

/// Whether a child of this cgroup can be limited: tried, because rights and delegation cannot be read off anything.
fn can_set(controller: Controller, version: Version, below: &Path) -> bool {
    let probe = below.join(format!("probe-{}-{}", std::process::id(), controller.name()));
    if fs::create_dir(&probe).is_err() {
        return false;
    }
    let (file, value) = controller.settings(version, &Limits::default()).swap_remove(0);
    // A file that is missing must not be made: then the controller is off.
    let can = OpenOptions::new()
        .write(true)
        .open(probe.join(file))
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .is_ok();
    let _ = fs::remove_dir(&probe);
    can
}

/// Where this process's cgroups are, version 2 first.
fn candidates(mounts: &str, own: &str) -> Vec<(Version, PathBuf, Vec<Controller>)> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mount_point), Some(kind), Some(options)) =
            (left.get(3), left.get(4), right.first(), right.get(2))
        else {
            continue;
        };
        let (version, controllers): (_, Vec<_>) = match *kind {
            "cgroup2" => (Version::V2, CONTROLLERS.to_vec()),
            "cgroup" => (
                Version::V1,
                CONTROLLERS
                    .into_iter()
                    .filter(|controller| options.split(',').any(|option| option == controller.name()))
                    .collect(),
            ),
            _ => continue,
        };
        let own_path = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let fits = match version {
                Version::V2 => names.is_empty(),
                Version::V1 => controllers
                    .iter()
                    .any(|controller| names.split(',').any(|name| name == controller.name())),
            };
            fits.then_some(path)
        });
        let Some(below) = own_path.and_then(|path| Path::new(path).strip_prefix(root).ok()) else {
            continue;
        };
        if !controllers.is_empty() {
            found.push((version, Path::new(mount_point).join(below), controllers));
        }
    }
    found.sort_by_key(|(version, ..)| *version == Version::V1);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroups_are_found_in_both_versions() {
        let mounts = "\
            30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:28 /docker/x /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            33 30 0:29 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n\
            34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let own = "9:freezer:/\n4:memory:/docker/x/y\n3:cpu,cpuacct:/a\n0::/user.slice\n";
        let path = |text: &str| PathBuf::from(text);
        assert_eq!(
            candidates(mounts, own),
            [
                (
                    Version::V2,
                    path("/sys/fs/cgroup/unified/user.slice"),
                    CONTROLLERS.to_vec()
                ),
                (
                    Version::V1,
                    path("/sys/fs/cgroup/cpu,cpuacct/a"),
                    vec![Controller::Cpu]
                ),
                (
                    Version::V1,
                    path("/sys/fs/cgroup/memory/y"),
                    vec![Controller::Memory]
                ),
            ]
        );
        assert_eq!(candidates("", ""), []);
        assert_eq!(candidates("nonsense - \n - cgroup2\n", "::\n:\n"), []);
    }

    /// A directory that looks like version 2; a real one takes the same files and words.
    #[test]
    fn version_2_is_told_its_limits_in_its_own_words() {
        let root = tempfile::tempdir().unwrap();
        let id = SandboxId::random();
        let own = root.path().join(id.as_str());
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cgroup.procs"), "").unwrap();
        let cgroups = Cgroups {
            bases: vec![Base {
                version: Version::V2,
                directory: root.path().to_owned(),
                controllers: CONTROLLERS.to_vec(),
            }],
        };
        let limits = Limits {
            memory_bytes_max: 1 << 20,
            processes_max: 7,
            cpu_milli: 1500,
            ..Limits::default()
        };
        assert_eq!(cgroups.create(&id, &limits).unwrap().len(), 1);
        for (file, expect) in [
            ("memory.max", "1048576"),
            ("memory.swap.max", "0"),
            ("pids.max", "7"),
            ("cpu.max", "150000 100000"),
        ] {
            assert_eq!(fs::read_to_string(own.join(file)).unwrap(), expect, "{file}");
        }
        assert_eq!(cgroups.directories(&id), [own]);
        assert!(cgroups.limits_memory());
        let by = cgroups.enforcements();
        assert_eq!(
            (by.memory, by.processes, by.cpu, by.open_files),
            (
                Enforcement::CgroupV2,
                Enforcement::CgroupV2,
                Enforcement::CgroupV2,
                Enforcement::Rlimit
            )
        );
        // Where the files are missing, as below a cgroup that passes nothing down, nothing can be set.
        assert!(!can_set(Controller::Memory, Version::V2, root.path()));
    }
}
