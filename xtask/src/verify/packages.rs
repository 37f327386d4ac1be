//! Programs of the operating system that the tests drive: installed when this runs as root on Debian, named otherwise.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::run;

struct Need {
    /// A program that the package brings.
    program: &'static str,
    /// The Debian package.
    package: &'static str,
    /// What for.
    what_for: &'static str,
}

const NEEDS: &[Need] = &[
    need("named", "bind9", "nodes found by DNS SRV"),
    need(
        "ip",
        "iproute2",
        "network namespaces: partitions and half-open connections",
    ),
    need("tc", "iproute2", "slow and lossy networks"),
    need("faketime", "faketime", "a clock that jumps"),
    need("mount", "mount", "a disk that is full"),
    need("setpriv", "util-linux", "clients that refuse to run as root"),
    need("curl", "curl", "README's tour"),
    need("jq", "jq", "README's tour"),
    need("script", "bsdutils", "README's tour"),
    need("bwrap", "bubblewrap", "sandboxes by bubblewrap"),
    need("git", "git", "workspaces of agents"),
    need("dockerd", "docker.io", "sandboxes by Docker"),
    need("debootstrap", "debootstrap", "the file system of agent images"),
    need("node", "nodejs", "clients and CLIs from npm"),
    need("npm", "npm", "clients and CLIs from npm"),
    need(
        "python3",
        "python3",
        "building the engine, and the Python clients",
    ),
];

const fn need(program: &'static str, package: &'static str, what_for: &'static str) -> Need {
    Need {
        program,
        package,
        what_for,
    }
}

/// Installs what is missing. Where that cannot be done, says what will be skipped for it; `strict` makes that an error.
pub(super) fn install_missing(strict: bool) -> Result<()> {
    if let Some(packages) = packages_of(&missing()) {
        if !(is_root() && on_path("apt-get")) {
            println!(
                "to install what is missing: apt-get install {}",
                packages.join(" ")
            );
        } else if let Err(error) = install(&packages) {
            println!("{error:#}");
        }
    }
    let missing = missing();
    for need in &missing {
        println!(
            "missing: {} (package {}), for {}",
            need.program, need.package, need.what_for
        );
    }
    match missing.len() {
        0 => println!("every program that the tests drive is here"),
        count if strict => bail!("{count} programs are missing, and nothing may be skipped here"),
        _ => println!("tests that need them will say so and count as skipped"),
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    run(apt_get().arg("update"))?;
    run(apt_get()
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !on_path(need.program)).collect()
}

fn packages_of(needs: &[&Need]) -> Option<Vec<&'static str>> {
    let mut packages: Vec<_> = needs.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    (!packages.is_empty()).then_some(packages)
}

/// Daemons live in sbin, which is not on every person's PATH.
fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system =
        ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(|directory| Path::new(directory).to_path_buf());
    env::split_paths(&path)
        .chain(system)
        .any(|directory| directory.join(program).is_file())
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_with_two_programs_is_installed_once() {
        let needs: Vec<_> = NEEDS.iter().filter(|need| need.package == "iproute2").collect();
        assert_eq!(needs.len(), 2);
        assert_eq!(packages_of(&needs), Some(vec!["iproute2"]));
        assert_eq!(packages_of(&[]), None);
    }
}
