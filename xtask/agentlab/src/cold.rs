//! Sandboxes from nothing to an init that has connected, by each driver; and what `docker run` takes at the least.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use remuda_tests::{BASE_IMAGE as IMAGE, Dockerd, binary};
use sandbox::{
    Bubblewrap, BubblewrapSettings, CreateRequest, Docker, DockerSettings, Driver, InitProgram, Limits,
    Rendezvous, Sandbox, SandboxId,
};

use crate::Lab;
use crate::figures::{Bar, Part, Promised, Times, table};
use crate::processes::{Sandboxed, proportional_bytes};

const ROUNDS: usize = 40;
/// Longer than any start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sandboxes of Docker whose memory is looked at.
const DOCKER_IDLE: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

pub(crate) fn measure(lab: &Lab) -> Result<Part> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(all(lab))
}

async fn all(lab: &Lab) -> Result<Part> {
    let directory = tempfile::tempdir()?;
    let maker = Maker::new(
        Bubblewrap::new(BubblewrapSettings::new(&directory.path().join("bubblewrap")))?,
        directory.path(),
    )?;
    let mut by_bubblewrap = Times::default();
    for round in 0..=lab.rounds(ROUNDS) {
        let took = maker.start_and_end().await?;
        // The first one reads programs from disk.
        if round > 0 {
            by_bubblewrap.add(took);
        }
    }
    let mut bars = vec![Bar {
        what: "a sandbox from nothing to its init, bubblewrap".to_owned(),
        measured: by_bubblewrap.median(),
        digits: 1,
        unit: "ms",
        promised: Promised::AtMost(50.0),
    }];
    let mut rows = vec![row("bubblewrap", &by_bubblewrap)];
    let mut text = String::new();
    if let Some(daemon) = Dockerd::start("the sandboxes of Docker") {
        let (floor, by_docker, more) = docker(lab, &daemon).await?;
        bars.push(Bar {
            what: "a sandbox from nothing to its init, Docker".to_owned(),
            measured: by_docker.median(),
            digits: 1,
            unit: "ms",
            // As it is shown.
            promised: Promised::AtMost((floor.median() * 10.0).round() / 10.0 + 50.0),
        });
        rows.extend([
            row("Docker", &by_docker),
            row("`docker run`, to its first line", &floor),
        ]);
        text = more;
    }
    let heading = ["", "sandboxes", "p50", "p99", "longest"];
    let text = format!("{}\n{METHOD}{text}", table(&heading, &rows));
    Ok(Part {
        title: "Sandboxes from nothing",
        bars,
        text,
    })
}

const METHOD: &str = "\
Milliseconds, from the call of the driver to the init's connection. `docker run` takes turns with Docker's sandboxes: the \
same image, limits and hardening, and a program that prints a line, timed to that line. The promise is that line plus \
50 ms.
";

async fn docker(lab: &Lab, daemon: &Dockerd) -> Result<(Times, Times, String)> {
    let directory = tempfile::tempdir()?;
    let settings = DockerSettings {
        socket: daemon.socket(),
        node: directory.path().display().to_string(),
        image: Some(IMAGE.to_owned()),
    };
    let maker = Maker::new(Docker::new(settings), directory.path())?;
    let (mut floor, mut sandboxes) = (Times::default(), Times::default());
    for round in 0..=lab.rounds(ROUNDS / 2) {
        let run = docker_run(&daemon.socket())?;
        let took = maker.start_and_end().await?;
        if round > 0 {
            floor.add(run);
            sandboxes.add(took);
        }
    }
    let mut idle = Vec::new();
    for _ in 0..DOCKER_IDLE {
        idle.push(maker.start().await?.1);
    }
    let (mut own, mut init) = (0, 0);
    for sandbox in &idle {
        let of = container(&daemon.socket(), sandbox.id())?;
        own += proportional_bytes(of.outer)?;
        init += proportional_bytes(of.init)?;
    }
    for sandbox in idle {
        maker.end(sandbox).await?;
    }
    let each = |bytes: u64| bytes as f64 / DOCKER_IDLE as f64 / MIB;
    let text = format!(
        "\nAn idle sandbox of Docker takes {:.1} MiB of its own (containerd's shim), and {:.2} MiB for the init in it.\n",
        each(own),
        each(init)
    );
    Ok((floor, sandboxes, text))
}

/// Makes sandboxes.
struct Maker<D> {
    driver: D,
    rendezvous: Rendezvous,
    _returned: sandbox::Returned,
}

impl<D: Driver> Maker<D> {
    fn new(driver: D, directory: &Path) -> Result<Self> {
        let (rendezvous, returned) = Rendezvous::open(directory)?;
        Ok(Self {
            driver,
            rendezvous,
            _returned: returned,
        })
    }

    async fn start(&self) -> Result<(Duration, Sandbox)> {
        let id = SandboxId::random();
        let begun = Instant::now();
        let expected = self.rendezvous.expect(&id)?;
        let request = CreateRequest {
            id,
            connect: expected.connect(),
            agent_directory: None,
            image: None,
            limits: Limits::default(),
            environment: Vec::new(),
            init: InitProgram {
                path: binary("remuda-init"),
                arguments: Vec::new(),
            },
        };
        self.driver.create(request).await?;
        let sandbox = expected.arrived(PATIENCE).await?;
        Ok((begun.elapsed(), sandbox))
    }

    async fn end(&self, sandbox: Sandbox) -> Result<()> {
        let id = sandbox.id().clone();
        drop(sandbox);
        self.driver.destroy(&id).await?;
        self.rendezvous.forget(&id);
        Ok(())
    }

    async fn start_and_end(&self) -> Result<Duration> {
        let (took, sandbox) = self.start().await?;
        self.end(sandbox).await?;
        Ok(took)
    }
}

/// How long `docker run` takes to the first line of its program.
fn docker_run(socket: &Path) -> Result<Duration> {
    let limits = Limits::default();
    let mut command = Command::new("docker");
    command
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
        .args(["run", "--rm", "--network", "none"]);
    command.args([
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--user",
        "1000:1000",
    ]);
    command.args([
        "--memory",
        &limits.memory_bytes_max.to_string(),
        "--pids-limit",
        &limits.processes_max.to_string(),
    ]);
    for place in [sandbox::HOME, sandbox::WORKSPACE, "/tmp"] {
        command.args(["--tmpfs", place]);
    }
    command.arg("--mount").arg(format!(
        "type=bind,source={},target=/.remuda-init,readonly",
        binary("remuda-init").display()
    ));
    command.args([IMAGE, "/bin/echo", "up"]).stdout(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().context("docker")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
    let took = begun.elapsed();
    ensure!(
        child.wait()?.success() && line == "up\n",
        "docker run failed: {line}"
    );
    Ok(took)
}

/// The processes of a container: its shim, and its process 1.
fn container(socket: &Path, id: &SandboxId) -> Result<Sandboxed> {
    let output = Command::new("docker")
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
        .args(["inspect", "--format", "{{.State.Pid}}", &format!("remuda-{id}")])
        .output()?;
    let init: u32 = String::from_utf8(output.stdout)?.trim().parse()?;
    let stat = std::fs::read_to_string(format!("/proc/{init}/stat"))?;
    let parent = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1))
        .context("a parent")?;
    Ok(Sandboxed {
        outer: parent.parse()?,
        init,
    })
}

fn row(name: &str, times: &Times) -> Vec<String> {
    let cell = |percent| format!("{:.1}", times.at(percent));
    vec![
        name.to_owned(),
        times.count().to_string(),
        cell(50),
        cell(99),
        cell(100),
    ]
}
