//! The driver `docker`: containers of a Docker daemon on this machine, through its socket.
//!
//! The container has no network, a root that cannot be written, no capabilities, no way to get any, and the limits of
//! the request; what can be written is memory with a bound. Init is process 1 in it, mounted from this machine, and
//! reaches its node through its door, which is mounted, too. Docker's own seccomp filter holds, and init's on top.
//!
//! The daemon keeps the state: a label says whose containers they are, so a restarted node finds them again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HostConfig, HostConfigLogConfig, Mount,
    MountType, ResourcesUlimits,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker as Client};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use init_protocol::START_VARIABLE;
use tokio::sync::OnceCell;

use crate::driver::{CreateRequest, Created, Door, Driver, DriverError, Found, base_environment, describe};
use crate::{AGENT_DIRECTORY, DOOR_DIRECTORY, HOME, SANDBOX_UID, SandboxId, WORKSPACE};

/// How long the daemon may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// The period over which CPU time is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Where init is in a container.
const INIT_PATH: &str = "/.remuda-init";

const NODE_LABEL: &str = "remuda.node";
const SANDBOX_LABEL: &str = "remuda.sandbox";

/// How this driver works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerSettings {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Which node this is. A daemon may serve several; each sees its own sandboxes only.
    pub node: String,
    /// The image of requests that name none.
    pub image: Option<String>,
}

impl DockerSettings {
    /// The usual ones.
    pub fn new(node: &str) -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
            node: node.to_owned(),
            image: None,
        }
    }
}

/// The driver.
#[derive(Debug)]
pub struct Docker {
    settings: DockerSettings,
    client: OnceCell<Client>,
}

impl Docker {
    /// Asks nothing of the daemon yet: it may start later than its node.
    pub fn new(settings: DockerSettings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
        }
    }

    /// The client, which agrees with the daemon on a version of its interface when it is used first.
    async fn client(&self) -> Result<&Client, DriverError> {
        let connect = || async {
            let client = Client::connect_with_unix(
                &self.settings.socket.to_string_lossy(),
                ANSWER_TIMEOUT.as_secs(),
                API_DEFAULT_VERSION,
            )?;
            client.negotiate_version().await
        };
        self.client.get_or_try_init(connect).await.map_err(|error| {
            let socket = self.settings.socket.display();
            DriverError::Service {
                driver: "docker",
                why: format!("no Docker daemon answers at {socket}: {}", describe(&error)),
            }
        })
    }

    fn image<'a>(&'a self, asked: Option<&'a str>) -> Result<&'a str, DriverError> {
        asked.or(self.settings.image.as_deref()).ok_or_else(|| {
            DriverError::Unusable("no image is set; `cargo xtask agent-image` makes one".to_owned())
        })
    }

    async fn has_image(&self, image: Option<&str>) -> Result<(), DriverError> {
        let image = self.image(image)?;
        match self.client().await?.inspect_image(image).await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(404) => Err(DriverError::Unusable(format!(
                "the Docker daemon has no image {image}; `cargo xtask agent-image --import` makes them"
            ))),
            Err(error) => Err(service(&error)),
        }
    }

    fn name_of(id: &SandboxId) -> String {
        format!("remuda-{id}")
    }

    async fn make(&self, request: &CreateRequest) -> Result<(), DriverError> {
        let name = Self::name_of(&request.id);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let container = self.container(request)?;
        let create = |error: Error| match status(&error) {
            Some(409) => DriverError::Taken(request.id.clone()),
            Some(_) => DriverError::Create {
                id: request.id.clone(),
                why: error.to_string(),
            },
            None => service(&error),
        };
        let client = self.client().await?;
        client
            .create_container(Some(options), container)
            .await
            .map_err(create)?;
        if let Err(error) = client.start_container(&name, None).await {
            let error = create(error);
            if let Err(error) = self.remove(&name).await {
                tracing::warn!(sandbox = %request.id, error = &error as &dyn std::error::Error, "what is left of a sandbox cannot be removed");
            }
            return Err(error);
        }
        Ok(())
    }

    fn container(&self, request: &CreateRequest) -> Result<ContainerCreateBody, DriverError> {
        let Door::Directory(door) = &request.connect.door else {
            return Err(DriverError::Unusable(
                "a Docker sandbox has no network to reach a TLS port by".to_owned(),
            ));
        };
        let image = self.image(request.image.as_deref())?;
        let mut mounts = vec![
            read_only(&request.init.path, INIT_PATH),
            read_only(door, DOOR_DIRECTORY),
        ];
        mounts.extend(
            request
                .agent_directory
                .as_ref()
                .map(|agent| read_only(agent, AGENT_DIRECTORY)),
        );
        // Memory and processes are the container's to limit.
        let start = request
            .connect
            .start_variable(&request.id, request.limits.for_processes(false, false));
        let mut environment = base_environment(&request.environment);
        environment.push((START_VARIABLE.to_owned(), start));
        let mut entrypoint = vec![INIT_PATH.to_owned()];
        entrypoint.extend(request.init.arguments.iter().cloned());
        Ok(ContainerCreateBody {
            image: Some(image.to_owned()),
            hostname: Some("sandbox".to_owned()),
            user: Some(format!("{SANDBOX_UID}:{SANDBOX_UID}")),
            working_dir: Some("/".to_owned()),
            entrypoint: Some(entrypoint),
            cmd: Some(Vec::new()),
            env: Some(
                environment
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
            ),
            labels: Some(HashMap::from([
                (NODE_LABEL.to_owned(), self.settings.node.clone()),
                (SANDBOX_LABEL.to_owned(), request.id.to_string()),
            ])),
            network_disabled: Some(true),
            host_config: Some(host_config(request, mounts)),
            ..ContainerCreateBody::default()
        })
    }

    async fn remove(&self, name: &str) -> Result<(), DriverError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.client().await?.remove_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            // Somebody else is removing it.
            Err(error) if status(&error) == Some(409) => self.wait_until_removed(name).await,
            Err(error) => Err(service(&error)),
        }
    }

    async fn wait_until_removed(&self, name: &str) -> Result<(), DriverError> {
        let end = Instant::now() + ANSWER_TIMEOUT;
        while Instant::now() < end {
            match self.client().await?.inspect_container(name, None).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) if status(&error) == Some(404) => return Ok(()),
                Err(error) => return Err(service(&error)),
            }
        }
        Err(DriverError::Service {
            driver: "docker",
            why: format!("the container {name} stays"),
        })
    }

    async fn all(&self) -> Result<Vec<Found>, DriverError> {
        let label = format!("{NODE_LABEL}={}", self.settings.node);
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let containers = self
            .client()
            .await?
            .list_containers(Some(options))
            .await
            .map_err(|error| service(&error))?;
        let mut found = Vec::new();
        for container in &containers {
            let Some(sandbox) = found_in(container) else {
                continue;
            };
            if is_over(container) {
                self.remove(&Self::name_of(&sandbox.id)).await?;
            } else {
                found.push(sandbox);
            }
        }
        Ok(found)
    }
}

impl Driver for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn check<'a>(&'a self, image: Option<&'a str>) -> BoxFuture<'a, Result<(), DriverError>> {
        self.has_image(image).boxed()
    }

    fn create(&self, request: CreateRequest) -> BoxFuture<'_, Result<Created, DriverError>> {
        async move {
            let start = Instant::now();
            self.make(&request).await?;
            Ok(Created {
                took: start.elapsed(),
            })
        }
        .boxed()
    }

    fn destroy<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), DriverError>> {
        async move { self.remove(&Self::name_of(id)).await }.boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, DriverError>> {
        self.all().boxed()
    }
}

fn found_in(container: &ContainerSummary) -> Option<Found> {
    let id = container.labels.as_ref()?.get(SANDBOX_LABEL)?.parse().ok()?;
    let created = u64::try_from(container.created.unwrap_or(0)).unwrap_or(0);
    Some(Found {
        id,
        created: UNIX_EPOCH + Duration::from_secs(created),
    })
}

/// Whether init has ended. A container that was made and is about to be started has not begun.
fn is_over(container: &ContainerSummary) -> bool {
    matches!(
        container.state,
        Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD)
    )
}

fn host_config(request: &CreateRequest, mounts: Vec<Mount>) -> HostConfig {
    let limits = &request.limits;
    let number = |value: u64| Some(i64::try_from(value).unwrap_or(i64::MAX));
    let memory = |mode: &str, bytes: u64| {
        format!("rw,exec,nosuid,nodev,size={bytes},mode={mode},uid={SANDBOX_UID},gid={SANDBOX_UID}")
    };
    let ulimit = |name: &str, value| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: number(value),
        hard: number(value),
    };
    HostConfig {
        network_mode: Some("none".to_owned()),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        memory: number(limits.memory_bytes_max),
        // Memory and swap together: none of it may be swap.
        memory_swap: number(limits.memory_bytes_max),
        pids_limit: number(limits.processes_max),
        // Not as a number of CPUs: more than the machine has would be refused.
        cpu_period: number(CPU_PERIOD_US),
        cpu_quota: number(limits.cpu_milli.saturating_mul(CPU_PERIOD_US / 1000).max(1000)),
        // One byte: see the init's own limit.
        ulimits: Some(vec![ulimit("nofile", limits.open_files_max), ulimit("core", 1)]),
        shm_size: number((limits.tmp_bytes_max / 4).max(4096)),
        ipc_mode: Some("private".to_owned()),
        init: Some(false),
        tmpfs: Some(HashMap::from([
            ("/tmp".to_owned(), memory("1777", limits.tmp_bytes_max)),
            (HOME.to_owned(), memory("0700", limits.home_bytes_max)),
            (WORKSPACE.to_owned(), memory("0700", limits.workspace_bytes_max)),
        ])),
        mounts: Some(mounts),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "64k".to_owned()),
                ("max-file".to_owned(), "1".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    }
}

fn read_only(source: &Path, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..Mount::default()
    }
}

fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn service(error: &Error) -> DriverError {
    DriverError::Service {
        driver: "docker",
        why: error.to_string(),
    }
}
