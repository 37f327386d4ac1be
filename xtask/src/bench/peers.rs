//! Who is measured: how each gateway is got, set up and started. Each gets one core, one worker or thread where it can
//! be told so, pooled connections to the engine, no access log, and no buffering of streams.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::lab::{self, CpuTime, Engine, Lab, Process};
use super::samples::Metric;
use super::{binary, first_line};
use crate::verify::{cache_directory, root, run};

/// The key that Remuda wants to see. The others look at none.
const KEY: &str = "bench-key-0123456789abcdef";

/// A gateway, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum PeerKind {
    /// No gateway: the load generator asks the engine.
    #[value(skip)]
    Direct,
    /// Remuda's control plane with the node in the same process.
    Remuda,
    /// Remuda's control plane and a node, each a process, with HTTP/2 between them.
    RemudaTwoHops,
    /// From the system.
    Nginx,
    /// From the system.
    Haproxy,
    /// From PyPI.
    VllmRouter,
    /// From PyPI.
    Smg,
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "no gateway",
            Self::Remuda => "Remuda",
            Self::RemudaTwoHops => "Remuda, control plane and node",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::VllmRouter => "vllm-router",
            Self::Smg => "smg",
        })
    }
}

/// A gateway that answers.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) kind: PeerKind,
    pub(super) address: SocketAddr,
    pub(super) key: &'static str,
    pub(super) version: String,
    /// From the start of the process to its first answer.
    pub(super) start_time: Duration,
    processes: Vec<Process>,
}

impl Gateway {
    /// No gateway at all.
    pub(super) fn direct(engine: &Engine) -> Self {
        Self {
            kind: PeerKind::Direct,
            address: engine.address,
            key: KEY,
            version: String::new(),
            start_time: Duration::ZERO,
            processes: Vec::new(),
        }
    }

    /// Processor time so far; nothing for no gateway.
    pub(super) fn cpu_time(&self) -> Result<CpuTime> {
        let mut sum = CpuTime::default();
        for process in &self.processes {
            sum.add(process.cpu_time()?);
        }
        Ok(sum)
    }

    pub(super) fn resident_kib(&self) -> Result<u64> {
        self.processes.iter().map(Process::resident_kib).sum()
    }
}

impl PeerKind {
    /// Starts it in front of `engine` and waits for its first answer.
    pub(super) fn start(self, lab: &Lab, engine: &Engine) -> Result<Gateway> {
        let port = lab::free_port()?;
        let (command, version) = match self {
            Self::Direct => return Ok(Gateway::direct(engine)),
            Self::Remuda => remuda(lab, engine, port)?,
            Self::RemudaTwoHops => return two_hops(lab, engine),
            Self::Nginx => nginx(lab, engine, port)?,
            Self::Haproxy => haproxy(lab, engine, port)?,
            Self::VllmRouter => vllm_router(engine, port)?,
            Self::Smg => smg(engine, port)?,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let start = Instant::now();
        let process = lab.gateway(&self.to_string(), &command)?;
        process.wait_until(|| lab::ask(address, KEY).is_ok_and(|answer| answer.status == 200))?;
        let start_time = start.elapsed();
        Ok(Gateway {
            kind: self,
            address,
            key: KEY,
            version,
            start_time,
            processes: vec![process],
        })
    }

    /// Whether it is measured with ten thousand open streams.
    pub(super) fn holds_many_streams(self) -> bool {
        matches!(self, Self::Remuda | Self::Nginx | Self::Haproxy)
    }
}

fn remuda(lab: &Lab, engine: &Engine, port: u16) -> Result<(Command, String)> {
    let directory = lab.directory("remuda")?;
    fs::write(directory.join("remuda.toml"), pool_settings(engine))?;
    let mut command = Command::new(binary("orchestratord")?);
    command.current_dir(&directory);
    command.env("REMUDA_CONFIG", directory.join("remuda.toml"));
    command.env("ORCHESTRATORD_ADDR", format!("127.0.0.1:{port}"));
    command.env("ORCHD_API_KEYS", KEY);
    command.env("ORCHD_DATA_DIR", &directory);
    Ok((command, remuda_version()))
}

fn two_hops(lab: &Lab, engine: &Engine) -> Result<Gateway> {
    let start = Instant::now();
    let plane = cloud_control_plane(lab)?;
    let node = node(lab, engine, &plane)?;
    node.wait_until(|| lab::ask(plane.address, KEY).is_ok_and(|answer| answer.status == 200))?;
    Ok(Gateway {
        kind: PeerKind::RemudaTwoHops,
        address: plane.address,
        key: KEY,
        version: remuda_version(),
        start_time: start.elapsed(),
        processes: vec![plane.process, node],
    })
}

/// One pool that names the engine by its address.
fn pool_settings(engine: &Engine) -> String {
    format!(
        "[[pools]]\nid = \"bench\"\nengine = \"openai\"\nurl = \"http://{}\"\nslots = 50000\n",
        engine.address
    )
}

fn remuda_version() -> String {
    let mut git = Command::new("git");
    git.arg("-C")
        .arg(root())
        .args(["describe", "--always", "--dirty"]);
    // Without git, or outside a repository, the version alone has to do.
    let commit = first_line(&mut git).unwrap_or_else(|_| "unknown commit".to_owned());
    format!("{} ({commit})", env!("CARGO_PKG_VERSION"))
}

fn nginx(lab: &Lab, engine: &Engine, port: u16) -> Result<(Command, String)> {
    let directory = lab.directory("nginx")?;
    let shown = directory.display();
    let settings = format!(
        "daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {shown}/pid;
error_log stderr crit;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_max_body_size 64m;
    client_body_buffer_size 64k;
    client_body_temp_path {shown}/body;
    proxy_temp_path {shown}/proxy;
    fastcgi_temp_path {shown}/fastcgi;
    uwsgi_temp_path {shown}/uwsgi;
    scgi_temp_path {shown}/scgi;
    upstream engine {{
        server {};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 3600s;
            proxy_send_timeout 3600s;
        }}
    }}
}}
",
        engine.address
    );
    let path = directory.join("nginx.conf");
    fs::write(&path, settings)?;
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(&directory)
        .arg("-c")
        .arg(&path)
        .args(["-e", "stderr"]);
    let version = first_line(Command::new("nginx").arg("-v"))?;
    Ok((command, version.replace("nginx version: nginx/", "")))
}

fn haproxy(lab: &Lab, engine: &Engine, port: u16) -> Result<(Command, String)> {
    let settings = format!(
        "global
    maxconn {}
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 75s
    option http-no-delay
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    default_backend engine
backend engine
    server engine {}
",
        lab.streams_max().min(30_000),
        engine.address
    );
    let path = lab.directory("haproxy")?.join("haproxy.cfg");
    fs::write(&path, settings)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    let version = first_line(Command::new("haproxy").arg("-v"))?;
    Ok((command, version.split(' ').nth(2).unwrap_or("unknown").to_owned()))
}

fn vllm_router(engine: &Engine, port: u16) -> Result<(Command, String)> {
    const VERSION: &str = "0.1.17";
    let mut command = Command::new(python_program("vllm-router", VERSION, "vllm-router")?);
    common_router_arguments(&mut command, engine, port)?;
    Ok((command, VERSION.to_owned()))
}

fn smg(engine: &Engine, port: u16) -> Result<(Command, String)> {
    const VERSION: &str = "1.13.0";
    let mut command = Command::new(python_program("smg", VERSION, "smg")?);
    command.arg("launch");
    common_router_arguments(&mut command, engine, port)?;
    Ok((command, VERSION.to_owned()))
}

/// What vllm-router and smg have from their common ancestor.
fn common_router_arguments(command: &mut Command, engine: &Engine, port: u16) -> Result<()> {
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--worker-urls", &format!("http://{}", engine.address)]);
    command.args(["--policy", "round_robin", "--log-level", "error"]);
    command.args(["--prometheus-port", &lab::free_port()?.to_string()]);
    Ok(())
}

/// A program of a Python package, in a virtual environment of its own.
fn python_program(package: &str, version: &str, program: &str) -> Result<PathBuf> {
    let environment = cache_directory()?
        .join("bench")
        .join("venvs")
        .join(format!("{package}-{version}"));
    let path = environment.join("bin").join(program);
    if !path.exists() {
        fs::create_dir_all(environment.parent().context("the path was joined from parts")?)?;
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment))?;
        let requirement = format!("{package}=={version}");
        run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", &requirement]))?;
    }
    Ok(path)
}

/// A daemon of Remuda's with nothing to do, and where its figures go.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) memory: Metric,
    pub(super) share: Metric,
    pub(super) process: Process,
    /// What must outlive it.
    _behind: Option<Engine>,
}

/// A control plane and a node that know each other, the node with one engine.
pub(super) fn daemons(lab: &Lab) -> Result<Vec<Daemon>> {
    let engine = lab.engine()?;
    let plane = cloud_control_plane(lab)?;
    let process = node(lab, &engine, &plane)?;
    let is_known = || {
        lab::get(plane.address, "/v2/nodes", Some(KEY)).is_ok_and(|answer| answer.body.contains("bench-node"))
    };
    process.wait_until(is_known)?;
    let node = Daemon {
        memory: Metric::IdleNodeMib,
        share: Metric::IdleNodeShare,
        process,
        _behind: Some(engine),
    };
    let plane = Daemon {
        memory: Metric::IdlePlaneMib,
        share: Metric::IdlePlaneShare,
        process: plane.process,
        _behind: None,
    };
    Ok(vec![node, plane])
}

/// Starts a node that registers with `plane` and has one pool, `engine`.
fn node(lab: &Lab, engine: &Engine, plane: &ControlPlane) -> Result<Process> {
    let directory = lab.directory("node")?;
    fs::write(directory.join("remuda.toml"), pool_settings(engine))?;
    let port = lab::free_port()?;
    let mut command = Command::new(binary("pool-managerd")?);
    command.current_dir(&directory);
    command.env("REMUDA_CONFIG", directory.join("remuda.toml"));
    command.env("POOL_MANAGERD_CLOUD_PROFILE", "true");
    command.env("POOL_MANAGERD_NODE_ID", "bench-node");
    command.env("POOL_MANAGERD_ADDR", format!("127.0.0.1:{port}"));
    command.env("POOL_MANAGERD_ADDRESS", format!("http://127.0.0.1:{port}"));
    command.env("POOL_MANAGERD_RUNTIME_DIR", directory.join("engines"));
    command.env("ORCHESTRATORD_URL", format!("http://{}", plane.address));
    command.env("LLORCH_API_TOKEN", KEY);
    lab.gateway("pool-managerd", &command)
}

/// A control plane that waits for nodes.
#[derive(Debug)]
pub(super) struct ControlPlane {
    pub(super) address: SocketAddr,
    pub(super) key: &'static str,
    pub(super) process: Process,
}

/// Starts a control plane of profile `cloud`.
pub(super) fn cloud_control_plane(lab: &Lab) -> Result<ControlPlane> {
    let port = lab::free_port()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut command = Command::new(binary("orchestratord")?);
    let directory = lab.directory("orchestratord")?;
    command.current_dir(&directory);
    command.env("ORCHD_DATA_DIR", &directory);
    command.env("ORCHESTRATORD_CLOUD_PROFILE", "true");
    command.env("ORCHESTRATORD_ADDR", address.to_string());
    command.env("ORCHD_API_KEYS", KEY);
    command.env("LLORCH_API_TOKEN", KEY);
    let process = lab.gateway("orchestratord", &command)?;
    process
        .wait_until(|| lab::get(address, "/health/live", None).is_ok_and(|answer| answer.status == 200))?;
    Ok(ControlPlane {
        address,
        key: KEY,
        process,
    })
}
