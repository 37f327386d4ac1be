//! A Docker daemon of the test's own: its directories, its socket, its network settings (none).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agents::Profile;
use agents::install::image_name;

use crate::{Program, binary, is_alive, skipped};

/// The name of the base system's image.
pub const BASE_IMAGE: &str = "remuda-agent-base:latest";

/// A running one. Dropping it ends it.
pub struct Dockerd {
    program: Option<Program>,
    directory: tempfile::TempDir,
}

impl Dockerd {
    /// One with the image of the base system. None where it cannot be started; the test is then skipped.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, None)
    }

    /// One with the image of this agent, or of the base system.
    pub fn start_with(test: &str, agent: Option<&str>) -> Option<Self> {
        let profile = agent.map(|agent| Profile::find(agent, None).expect("it is one of ours"));
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
        let image = match image(profile.as_ref()) {
            Ok(image) => image,
            Err(error) => {
                skipped(test, &error);
                return None;
            }
        };
        // The first storage driver that the daemon picks itself; the other works on every file system.
        for storage in [None, Some("vfs")] {
            let daemon = Self::spawn(storage);
            if daemon.is_up() {
                let name = profile.as_ref().map_or_else(|| BASE_IMAGE.to_owned(), image_name);
                daemon.import(&image, &name);
                return Some(daemon);
            }
            println!("dockerd: {}", daemon.log());
        }
        skipped(test, "dockerd does not start");
        None
    }

    fn spawn(storage: Option<&str>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("dockerd")
            .tempdir()
            .expect("a directory");
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

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.join("\n")
    }

    /// The command line, speaking with it.
    pub fn client(&self) -> Command {
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
            if !pid.is_some_and(is_alive) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn import(&self, image: &Path, name: &str) {
        let output = self
            .client()
            .arg("import")
            .arg(image)
            .arg(name)
            .output()
            .expect("docker starts");
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
        while is_alive(pid) && Instant::now() < end {
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

/// The file of an image, made once for this target directory: the base system, or one agent's.
fn image(agent: Option<&Profile>) -> Result<PathBuf, String> {
    let xtask = binary("xtask");
    let targets = xtask
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/xtask");
    let images = targets.join("agent-images");
    std::fs::create_dir_all(&images).map_err(|error| error.to_string())?;
    // Tests of several programs want the same.
    let lock = std::fs::File::create(images.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let base = images.join("base.tar");
    if !base.exists() {
        make(&xtask, &["--out"], &base)?;
    }
    let Some(profile) = agent else { return Ok(base) };
    let image = images.join(format!("{}.tar", image_name(profile).replace(':', "-")));
    if !image.exists() {
        let base = base.display().to_string();
        make(
            &xtask,
            &["--agent", &profile.name, "--base", &base, "--out"],
            &image,
        )?;
    }
    Ok(image)
}

fn make(xtask: &Path, arguments: &[&str], out: &Path) -> Result<(), String> {
    let output = Command::new(xtask)
        .arg("agent-image")
        .args(arguments)
        .arg(out)
        .output()
        .map_err(|error| format!("{}: {error}", xtask.display()))?;
    if output.status.success() {
        Ok(())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("no image can be made: {}", errors.trim()))
    }
}
