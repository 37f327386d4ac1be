//! What agents' sandboxes need here, and what keeps them within their limits.

use std::collections::BTreeMap;
use std::process::Command;

use agents::Profile;
use agents::install::image_name;
use daemon::config::{self, Sources};
use orchestratord::Settings;
use pool_managerd::{AgentsConfig, PoolSettings};
use pool_registry_types::PoolKind;
use sandbox::{Docker, DockerSettings, Driver as _, Enforcement, Enforcements};

use super::Finding;
use super::engine::on_path;

/// The whole of it. `remuda run` without an agent works without any of this.
pub(super) async fn check() -> Vec<Finding> {
    let mut findings = vec![bubblewrap(), npm(), limits(sandbox::enforcements())];
    let no_flags: [&str; 0] = [];
    // What is wrong with the settings is a finding of its own.
    if let Ok(loaded) = config::load::<Settings>(&Sources::with_arguments(no_flags)) {
        let pools = loaded.file.section::<Vec<PoolSettings>>("pools");
        let pools = pools.ok().flatten().unwrap_or_default();
        let agents = loaded.settings.agents.config(&[]);
        for pool in pools.iter().filter(|pool| is_docker(pool)) {
            findings.push(docker(pool, &agents).await);
        }
    }
    findings
}

fn bubblewrap() -> Finding {
    let about = "bubblewrap";
    let Some(path) = on_path("bwrap") else {
        let advice = "on Debian or Ubuntu: apt-get install bubblewrap";
        return Finding::warning(about, "no bwrap, and agents' sandboxes are made by it", advice);
    };
    // Namespaces may be forbidden though the program is there.
    let tried = Command::new(&path)
        .args(["--unshare-all", "--ro-bind", "/", "/", "true"])
        .output();
    match tried {
        Ok(output) if output.status.success() => Finding::ok(about, path.display().to_string()),
        Ok(output) => Finding::warning(
            about,
            format!(
                "{} makes no sandbox: {}",
                path.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            "allow unprivileged user namespaces (sysctl user.max_user_namespaces, or an AppArmor profile for bwrap)",
        ),
        Err(error) => Finding::warning(
            about,
            format!("{} does not start: {error}", path.display()),
            "install it anew",
        ),
    }
}

fn npm() -> Finding {
    match on_path("npm") {
        Some(path) => Finding::ok("npm", path.display().to_string()),
        None => Finding::warning(
            "npm",
            "none, and agents are installed by it",
            "install Node.js 20 or later",
        ),
    }
}

/// Which limit is kept by what.
fn limits(by: Enforcements) -> Finding {
    let mut kept: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (what, by) in [
        ("memory", by.memory),
        ("processes", by.processes),
        ("CPU time", by.cpu),
        ("open files", by.open_files),
    ] {
        kept.entry(word(by)).or_default().push(what);
    }
    let said: Vec<String> = kept
        .iter()
        .map(|(by, what)| format!("{} by {by}", what.join(", ")))
        .collect();
    let found = said.join("; ");
    let weak = [by.memory, by.processes, by.cpu]
        .iter()
        .any(|by| matches!(by, Enforcement::Rlimit | Enforcement::None));
    if weak {
        let advice = "a cgroup of the node's own makes them exact: Delegate=yes in its systemd unit, and \
                      DelegateSubgroup= for version 2";
        Finding::warning("limits of sandboxes", found, advice)
    } else {
        Finding::ok("limits of sandboxes", found)
    }
}

fn word(by: Enforcement) -> &'static str {
    match by {
        Enforcement::CgroupV2 => "cgroup (version 2)",
        Enforcement::CgroupV1 => "cgroup (version 1)",
        Enforcement::Rlimit => "rlimit, for each process",
        Enforcement::None => "nothing",
    }
}

fn is_docker(pool: &PoolSettings) -> bool {
    pool.kind == PoolKind::Agent && pool.driver.as_deref() == Some("docker")
}

/// Whether a pool's image is there.
async fn docker(pool: &PoolSettings, config: &AgentsConfig) -> Finding {
    let about = "Docker";
    let id = &pool.id;
    let agent = pool.agent.as_deref().unwrap_or_default();
    let profile = match Profile::find(agent, config.profiles.as_deref()) {
        Ok(profile) => profile,
        Err(error) => {
            let found = format!("pool {id}: {}", daemon::exit::chain(&error));
            return Finding::warning(about, found, "docs/agents.md lists what a pool may say");
        }
    };
    let image = pool.image.clone().unwrap_or_else(|| image_name(&profile));
    let driver = Docker::new(DockerSettings {
        socket: config.docker_socket.clone(),
        node: String::new(),
        image: None,
    });
    match driver.check(Some(&image)).await {
        Ok(()) => Finding::ok(about, format!("pool {id} has its image {image}")),
        Err(error @ sandbox::DriverError::Unusable(_)) => Finding::warning(
            about,
            format!("pool {id}: {error}"),
            format!("cargo xtask agent-image --agent {agent} --import"),
        ),
        Err(error) => Finding::warning(
            about,
            format!("pool {id}: {error}"),
            "on Debian or Ubuntu: apt-get install docker.io; `docker_socket` says where its daemon listens, and this \
             user must be allowed to use it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn each_limit_is_said_with_what_keeps_it() {
        let by = |memory, cpu| Enforcements {
            memory,
            processes: Enforcement::CgroupV2,
            cpu,
            open_files: Enforcement::Rlimit,
        };
        let good = limits(by(Enforcement::CgroupV2, Enforcement::CgroupV2));
        assert_eq!(good.level, Level::Ok);
        assert_eq!(
            good.found,
            "memory, processes, CPU time by cgroup (version 2); open files by rlimit, for each process"
        );
        let weak = limits(by(Enforcement::Rlimit, Enforcement::None));
        assert_eq!(weak.level, Level::Warning);
        assert!(weak.found.contains("CPU time by nothing"), "{}", weak.found);
    }

    #[tokio::test]
    async fn a_docker_pool_without_a_daemon_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut pool = PoolSettings::with_agent("agents".parse().unwrap(), "claude");
        pool.driver = Some("docker".to_owned());
        assert!(is_docker(&pool));
        let config = AgentsConfig {
            docker_socket: directory.path().join("docker.sock"),
            ..AgentsConfig::default()
        };
        let finding = docker(&pool, &config).await;
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding.found.contains("no Docker daemon answers"),
            "{}",
            finding.found
        );
    }
}
