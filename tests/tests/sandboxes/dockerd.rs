//! A Docker daemon of the test's own: its directories, its socket, its network settings (none).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use remuda_tests::{Program, binary, skipped};

/// The name of the image that is imported into it.
pub(crate) const IMAGE: &str = "remuda-agent-base:latest";

pub(crate) struct Dockerd {
    program: Option<Program>,
    directory: tempfile::TempDir,
}

impl Dockerd {
    /// None where it cannot be started; the test is then skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped(test, "a Docker daemon needs root");
            return None;
        }
        if Command::new("dockerd").arg("--version").output().is_err() {
            skipped(
                test,
                "there is no dockerd; on Debian it is in the package docker.io",
            );
            return None;
        }
        let image = match image() {
            Ok(image) => image,
            Err(error) => {
                skipped(test, &error);
                return None;
            }
        };
        // The first storage driver that the daemon picks itself; the other works on every file system.
        for storage in [None, Some("vfs")] {
            let mut daemon = Self::spawn(storage);
            if daemon.is_up() {
                daemon.import(&image);
                return Some(daemon);
            }
            println!("dockerd: {}", daemon.log());
            daemon.stop();
        }
        skipped(test, "dockerd does not start");
        None
    }

    fn spawn(storage: Option<&str>) -> Self {
        let directory = tempfile::Builder::new().prefix("dockerd").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .arg("--host")
            .arg(format!("unix://{}", path("docker.sock").display()))
            .args(["--iptables=false", "--bridge=none", "--ip-forward=false"]);
        if let Some(storage) = storage {
            command.args(["--storage-driver", storage]);
        }
        let program = Program::start("dockerd", command, path("log"));
        Self {
            program: Some(program),
            directory,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.join("\n")
    }

    fn client(&self) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()));
        command
    }

    fn is_up(&self) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if self
                .client()
                .arg("version")
                .output()
                .is_ok_and(|output| output.status.success())
            {
                return true;
            }
            let pid = self.program.as_ref().map(Program::pid);
            if !pid.is_some_and(remuda_tests::is_alive) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn import(&mut self, image: &Path) {
        let output = self
            .client()
            .arg("import")
            .arg(image)
            .arg(IMAGE)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn stop(&mut self) {
        let Some(program) = self.program.take() else {
            return;
        };
        let pid = program.pid();
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(30);
        while remuda_tests::is_alive(pid) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(program);
        // What a daemon that was killed leaves mounted.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.directory.path().to_string_lossy().into_owned();
        for line in mounts.lines().rev() {
            if let Some(target) = line.split(' ').nth(1).filter(|target| target.starts_with(&own)) {
                let _ = Command::new("umount").args(["--lazy", target]).status();
            }
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The base system of agent images, made once for this target directory.
fn image() -> Result<PathBuf, String> {
    let xtask = binary("xtask");
    let targets = xtask
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/xtask");
    let image = targets.join("agent-images/base.tar");
    if image.exists() {
        return Ok(image);
    }
    let output = Command::new(xtask)
        .arg("agent-image")
        .arg("--out")
        .arg(&image)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(image)
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("no image can be made: {}", errors.trim()))
    }
}
