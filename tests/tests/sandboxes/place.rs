//! A node's part of sandboxes: driver, rendezvous, directories.

use std::sync::Arc;
use std::time::{Duration, Instant};

use remuda_tests::{BASE_IMAGE, Dockerd, binary, skipped};
use sandbox::{
    Bubblewrap, BubblewrapSettings, CreateRequest, Docker, DockerSettings, Driver, ExecRequest, Exit,
    InitProgram, Limits, Process, Rendezvous, Returned, Sandbox, SandboxError, SandboxId,
};
use tokio::io::AsyncReadExt as _;

/// How long a sandbox may take, on a machine that does other things too.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) rendezvous: Rendezvous,
    pub(crate) returned: Returned,
    /// Last, because fields are dropped in order.
    _daemon: Option<Arc<Dockerd>>,
}

/// Small, so that what tries to fill a sandbox is soon done.
pub(crate) fn limits() -> Limits {
    const MIB: u64 = 1024 * 1024;
    Limits {
        memory_bytes_max: 160 * MIB,
        processes_max: 64,
        open_files_max: 256,
        cpu_milli: 1000,
        home_bytes_max: 16 * MIB,
        tmp_bytes_max: 16 * MIB,
        workspace_bytes_max: 16 * MIB,
    }
}

impl Place {
    /// None where there is no bubblewrap; the test is then skipped.
    pub(crate) fn bubblewrap(test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let settings = BubblewrapSettings::new(&directory.path().join("bubblewrap"));
        match Bubblewrap::new(settings) {
            Ok(driver) => Some(Self::new(directory, Arc::new(driver), None)),
            Err(error) => {
                skipped(test, &error.to_string());
                None
            }
        }
    }

    pub(crate) fn docker(daemon: &Arc<Dockerd>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = DockerSettings {
            socket: daemon.socket(),
            node: directory.path().display().to_string(),
            image: Some(BASE_IMAGE.to_owned()),
        };
        let driver = Docker::new(settings);
        Self::new(directory, Arc::new(driver), Some(Arc::clone(daemon)))
    }

    pub(crate) fn new(
        directory: tempfile::TempDir,
        driver: Arc<dyn Driver>,
        daemon: Option<Arc<Dockerd>>,
    ) -> Self {
        let (rendezvous, returned) = Rendezvous::open(directory.path()).unwrap();
        Self {
            directory,
            driver,
            rendezvous,
            returned,
            _daemon: daemon,
        }
    }

    pub(crate) fn request(&self, id: &SandboxId, connect: sandbox::Connect) -> CreateRequest {
        CreateRequest {
            id: id.clone(),
            connect,
            agent_directory: None,
            image: None,
            limits: limits(),
            environment: Vec::new(),
            init: InitProgram {
                path: binary("remuda-init"),
                arguments: Vec::new(),
            },
        }
    }

    pub(crate) async fn sandbox(&self) -> Sandbox {
        self.sandbox_with(|_| {}).await
    }

    pub(crate) async fn sandbox_with(&self, change: impl FnOnce(&mut CreateRequest)) -> Sandbox {
        let id = SandboxId::random();
        let expected = self.rendezvous.expect(&id).unwrap();
        let mut request = self.request(&id, expected.connect());
        change(&mut request);
        self.driver.create(request).await.unwrap();
        match expected.arrived(START_TIMEOUT).await {
            Ok(sandbox) => sandbox,
            Err(error) => panic!("{error}: {}", self.log(&id)),
        }
    }

    pub(crate) fn log(&self, id: &SandboxId) -> String {
        let log = self.directory.path().join(format!("bubblewrap/{id}.log"));
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// Ends a sandbox and checks that nothing is left of it.
    pub(crate) async fn end(&self, sandbox: Sandbox) {
        let id = sandbox.id().clone();
        drop(sandbox);
        self.driver.destroy(&id).await.unwrap();
        self.rendezvous.forget(&id);
        assert_eq!(self.driver.list().await.unwrap(), []);
        assert!(!self.directory.path().join("doors").join(id.as_str()).exists());
    }
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Exit,
}

impl Said {
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a shell script to its end.
pub(crate) async fn sh(sandbox: &Sandbox, script: &str) -> Said {
    run(sandbox, ["sh", "-c", script]).await.unwrap()
}

pub(crate) async fn run<const N: usize>(sandbox: &Sandbox, command: [&str; N]) -> Result<Said, SandboxError> {
    let Process {
        stdin,
        mut stdout,
        mut stderr,
        mut waiter,
    } = sandbox.exec(ExecRequest::new(command)).await?;
    drop(stdin);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let both = async {
        let (a, b) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        a.unwrap();
        b.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(120), both)
        .await
        .unwrap();
    let exit = waiter.wait().await?;
    Ok(Said {
        stdout: String::from_utf8_lossy(&out).into_owned(),
        stderr: String::from_utf8_lossy(&err).into_owned(),
        exit,
    })
}

/// Waits until `what` holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The processes of this machine whose command line holds `mark`.
pub(crate) fn host_processes_with(mark: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(mark).then_some(pid)
        })
        .collect()
}
