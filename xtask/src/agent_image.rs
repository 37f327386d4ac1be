//! `cargo xtask agent-image`: the file system of a Docker sandbox, from Debian's packages, with one agent's CLI in it.
//!
//! ```text
//! debootstrap (smallest variant) ─▶ the CLI, as a node installs it ─▶ Node, when the CLI needs it ─▶ tar ─▶ docker import
//! ```
//! There is no Dockerfile and nothing is fetched from a registry of images.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agents::{Profile, install};
use anyhow::{Context, Result, ensure};

/// What agents use besides: repositories are cloned in a sandbox, and are asked for over TLS.
const INCLUDED: &str = "--include=git,ca-certificates";

/// What no sandbox needs and every image would carry.
const LEFT_OUT: &[&str] = &[
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
];

/// Make the image of an agent's Docker sandboxes (needs root and debootstrap)
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask agent-image --agent claude --import\n  \
    cargo xtask agent-image --out base.tar\n  \
    cargo xtask agent-image --agent codex --base base.tar --import"
)]
pub(crate) struct AgentImage {
    /// The agent, by the name of its profile in agents/; without it, the base system alone
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,

    /// Where the image is written, as a tar archive [default: target/agent-images/NAME.tar]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// A base system that was made before, instead of a new one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["release", "mirror"])]
    base: Option<PathBuf>,

    /// Import it into the Docker daemon of this machine, under the name that the agent's pools look for
    #[arg(long)]
    import: bool,

    /// The Debian release [default: this machine's]
    #[arg(long, value_name = "NAME")]
    release: Option<String>,

    /// The Debian mirror [default: the one that this machine installs from]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

impl AgentImage {
    pub(crate) fn run(&self) -> Result<()> {
        let profile = match &self.agent {
            Some(agent) => Some(Profile::find(agent, None)?),
            None => None,
        };
        let name = profile
            .as_ref()
            .map_or_else(|| "remuda-agent-base:latest".to_owned(), install::image_name);
        let out = match &self.out {
            Some(out) => out.clone(),
            None => Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../target/agent-images")
                .join(format!("{}.tar", name.replace(':', "-"))),
        };
        if let Some(parent) = out.parent() {
            fs::create_dir_all(parent)?;
        }
        let work = tempfile::tempdir()?;
        let system = work.path().join("root");
        match &self.base {
            Some(base) => unpack(base, &system)?,
            None => self.make_base(&system)?,
        }
        if let Some(profile) = &profile {
            let installed = install::install(profile, &work.path().join("installed"), &mut |_| {})?;
            let target = system.join("opt/agent");
            fs::remove_dir_all(&target)?;
            fs::rename(installed, target)?;
            if profile.package.interpreter.as_deref() == Some("node") {
                copy_node(&system)?;
            }
        }
        for path in LEFT_OUT {
            empty(&system.join(path))?;
        }
        // A half-written image under the final name would be taken for a whole one.
        let partial = out.with_extension("tar.part");
        run(Command::new("tar")
            .args(["--numeric-owner", "--one-file-system", "-cf"])
            .arg(&partial)
            .arg("-C")
            .arg(&system)
            .arg("."))?;
        fs::rename(&partial, &out)?;
        println!("{}", out.display());
        if self.import {
            run(Command::new("docker").arg("import").arg(&out).arg(&name))?;
            println!("{name}");
        }
        Ok(())
    }

    fn make_base(&self, system: &Path) -> Result<()> {
        let release = match &self.release {
            Some(release) => release.clone(),
            None => own_release()?,
        };
        let mirror = match &self.mirror {
            Some(mirror) => mirror.clone(),
            None => own_mirror(&release)?,
        };
        run(Command::new("debootstrap")
            .args(["--variant=minbase", INCLUDED, &release])
            .arg(system)
            .arg(mirror)
            .stdout(Stdio::null()))
        .context("debootstrap (Debian's package debootstrap; needs root)")?;
        let passwd = system.join("etc/passwd");
        let mut users = fs::read_to_string(&passwd)?;
        users.push_str("agent:x:1000:1000::/home/agent:/bin/sh\n");
        fs::write(passwd, users)?;
        // Docker mounts onto these, and can make none in a root that cannot be written.
        for directory in ["home/agent", "workspace", "opt/agent", "run/remuda"] {
            fs::create_dir_all(system.join(directory))?;
        }
        Ok(())
    }
}

fn unpack(base: &Path, system: &Path) -> Result<()> {
    fs::create_dir_all(system)?;
    run(Command::new("tar")
        .args(["--numeric-owner", "-xpf"])
        .arg(base)
        .arg("-C")
        .arg(system))
}

/// This machine's Node and the libraries that it is linked to; Debian's own is older than the CLIs ask for.
fn copy_node(system: &Path) -> Result<()> {
    let node = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|directory| directory.join("node"))
        .find(|file| file.is_file())
        .context("there is no node on PATH")?;
    let node = fs::canonicalize(node)?;
    fs::copy(&node, system.join("usr/local/bin/node"))?;
    let output = Command::new("ldd").arg(&node).output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let target = system.join(library.trim_start_matches('/'));
        if !target.exists() {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(library, target)?;
        }
    }
    Ok(())
}

fn own_release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let release = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(release
        .context("this is no Debian; name a release with --release")?
        .trim_matches('"')
        .to_owned())
}

fn own_mirror(release: &str) -> Result<String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Component: main",
        ])
        .arg(format!("Codename: {release}"))
        .output()
        .context("apt-get")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .next()
        .with_context(|| {
            format!("this machine installs nothing from {release}; name a mirror with --mirror")
        })?
        .to_owned())
}

fn empty(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}
