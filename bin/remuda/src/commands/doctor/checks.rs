//! The checks that need a few lines each.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use daemon::config::{self, Sources};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use pool_managerd::PoolSettings;
use reqwest::Method;

use super::Finding;
use super::engine::on_path;
use crate::client::ControlPlane;
use crate::output::{duration, size};
use crate::paths;

/// What building the engine takes in the cache, with room to spare.
const CACHE_BYTES_NEEDED: u64 = 2 << 30;
const DESCRIPTORS_WANTED: u64 = 4096;
const CERTIFICATE_SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Tokens, certificates and logs begin to disagree from here on.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);

/// Reads the settings as `remuda up` would.
pub(super) fn settings() -> Finding {
    let about = "settings";
    let advice = "docs/settings.md lists every setting";
    let no_flags: [&str; 0] = [];
    let read =
        config::load::<orchestratord::Settings>(&Sources::with_arguments(no_flags)).and_then(|loaded| {
            let pools = loaded.file.section::<Vec<PoolSettings>>("pools")?;
            Ok(pools.map_or(0, |pools| pools.len()))
        });
    let named = env::var_os("REMUDA_CONFIG")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    let file = named.unwrap_or_else(|| PathBuf::from(config::DEFAULT_FILE));
    match read {
        Err(error) => Finding::problem(about, error.to_string().trim_end(), advice),
        Ok(_) if !file.exists() => Finding::ok(about, "no remuda.toml here; the defaults hold"),
        Ok(pools) => Finding::ok(
            about,
            format!("{} can be read, with {pools} pools", file.display()),
        ),
    }
}

pub(super) fn data_directory() -> Finding {
    let about = "data directory";
    let made = paths::data_directory().and_then(|path| {
        fs::create_dir_all(&path)?;
        let probe = path.join(format!(".doctor-{}", std::process::id()));
        fs::write(&probe, b"")?;
        fs::remove_file(&probe)?;
        Ok(path)
    });
    match made {
        Ok(path) => Finding::ok(about, path.display().to_string()),
        Err(error) => Finding::problem(about, format!("{error:#}"), "XDG_DATA_HOME chooses another place"),
    }
}

pub(super) fn disk_space() -> Finding {
    let about = "disk space";
    let cache = paths::cache_directory();
    let existing = cache
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} free for {}", size(free), cache.display());
            if free >= CACHE_BYTES_NEEDED {
                Finding::ok(about, found)
            } else {
                let advice = format!("building an engine takes about {}", size(CACHE_BYTES_NEEDED));
                Finding::warning(about, found, advice)
            }
        }
        Err(error) => Finding::warning(about, format!("cannot be told: {error}"), "look with df"),
    }
}

pub(super) fn gpu() -> Finding {
    let about = "GPU";
    if Path::new("/dev/nvidiactl").exists() {
        return match on_path("nvidia-smi") {
            Some(_) => Finding::ok(about, "an NVIDIA GPU with its driver"),
            None => Finding::warning(
                about,
                "an NVIDIA GPU whose driver's tools are missing",
                "install the driver",
            ),
        };
    }
    if Path::new("/dev/kfd").exists() {
        return Finding::ok(about, "an AMD GPU with its driver");
    }
    let listed = fs::read_dir("/sys/bus/pci/devices")
        .into_iter()
        .flatten()
        .flatten();
    let is_nvidia_display = |path: &Path| {
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        read("vendor").trim() == "0x10de" && read("class").starts_with("0x03")
    };
    if listed
        .map(|entry| entry.path())
        .any(|path| is_nvidia_display(&path))
    {
        let advice =
            "without it, models run on the processor; install NVIDIA's driver and look with nvidia-smi";
        return Finding::warning(about, "an NVIDIA GPU without a driver", advice);
    }
    Finding::ok(about, "none; models run on the processor")
}

/// A sandbox sees this machine's `/usr` and nothing else of it.
pub(super) fn git() -> Finding {
    let about = "git";
    if Path::new("/usr/bin/git").exists() {
        return Finding::ok(about, "in /usr/bin, where agents' sandboxes find it");
    }
    let advice = "workspaces of agents that are cloned need it there; on Debian: apt-get install git";
    Finding::warning(
        about,
        "not in /usr/bin, where agents' sandboxes would find it",
        advice,
    )
}

pub(super) fn descriptor_limit() -> Finding {
    let about = "open files";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.current {
        Some(current) if current < DESCRIPTORS_WANTED => Finding::warning(
            about,
            format!("at most {current} in one process, and each client takes one or two"),
            format!("ulimit -n {DESCRIPTORS_WANTED}, or LimitNOFILE= in the unit file"),
        ),
        Some(current) => Finding::ok(about, format!("at most {current} in one process")),
        None => Finding::ok(about, "no limit"),
    }
}

/// The certificates of the settings and those of `remuda certs`.
pub(super) fn certificates() -> Vec<Finding> {
    let from_environment = [
        "ORCHD_TLS_CERT",
        "ORCHD_TLS_CA",
        "POOL_MANAGERD_TLS_CERT",
        "POOL_MANAGERD_TLS_CA",
    ]
    .into_iter()
    .filter_map(env::var_os)
    .filter(|path| !path.is_empty())
    .map(PathBuf::from);
    let own = paths::certs_directory()
        .ok()
        .and_then(|directory| fs::read_dir(directory).ok());
    let own = own.into_iter().flatten().flatten().map(|entry| entry.path());
    let own = own.filter(|path| {
        path.extension() == Some(OsStr::new("crt")) || path.extension() == Some(OsStr::new("pem"))
    });
    let mut paths: Vec<_> = from_environment.chain(own).collect();
    paths.sort();
    paths.dedup();
    let now = SystemTime::now();
    paths
        .into_iter()
        .filter(|path| !is_key(path))
        .map(|path| certificate(&path, now))
        .collect()
}

fn is_key(path: &Path) -> bool {
    path.file_stem()
        .is_some_and(|stem| stem.to_string_lossy().ends_with("key"))
}

fn certificate(path: &Path, now: SystemTime) -> Finding {
    let about = "certificate";
    let shown = path.display();
    match daemon::certs::expiry(path) {
        Err(error) => Finding::warning(
            about,
            daemon::exit::chain(&error),
            "remuda certs issue makes a new one",
        ),
        Ok(until) => match until.duration_since(now) {
            Err(_) => Finding::warning(
                about,
                format!("{shown} has expired"),
                "remuda certs issue NAME --force",
            ),
            Ok(left) if left < CERTIFICATE_SOON => {
                let found = format!("{shown} expires in {}", duration(left));
                Finding::warning(about, found, "remuda certs issue NAME --force")
            }
            Ok(left) => Finding::ok(about, format!("{shown} is valid for {}", duration(left))),
        },
    }
}

/// Whether the control plane that was named answers, and whether its clock agrees with this one.
pub(super) async fn control_plane(control_plane: &ControlPlane) -> Vec<Finding> {
    let Some(url) = &control_plane.url else {
        return Vec::new();
    };
    let about = "control plane";
    let asked = async {
        let client = control_plane.client()?;
        let began = SystemTime::now();
        let request = client
            .request(Method::GET, "/v2/meta/version")
            .timeout(Duration::from_secs(10));
        let response = client.send(request).await?;
        let took = began.elapsed().unwrap_or_default();
        let date = response
            .headers()
            .get("date")
            .and_then(|date| date.to_str().ok())
            .map(str::to_owned);
        anyhow::Ok((began + took / 2, took, date))
    };
    match asked.await {
        Err(error) => {
            vec![Finding::warning(
                about,
                format!("{error:#}"),
                "commands that need it will fail; look at --url and --api-key",
            )]
        }
        Ok((here, took, date)) => {
            let answer = Finding::ok(about, format!("{url} answers in {}", duration(took)));
            vec![answer, clock(here, date.as_deref())]
        }
    }
}

fn clock(here: SystemTime, date: Option<&str>) -> Finding {
    let about = "clock";
    let there = date.and_then(|date| rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
    let here = Timestamp::try_from(here);
    let (Some(there), Ok(here)) = (there, here) else {
        return Finding::warning(
            about,
            "the control plane does not tell its time",
            "compare the clocks by hand",
        );
    };
    // The header has whole seconds, so up to one second of the difference is rounding.
    let skew = here
        .duration_since(there)
        .unsigned_abs()
        .saturating_sub(Duration::from_secs(1));
    let found = format!(
        "this machine's differs by {} from the control plane's",
        duration(skew)
    );
    if skew <= CLOCK_SKEW_MAX {
        Finding::ok(about, found)
    } else {
        Finding::warning(
            about,
            found,
            "keep both right with NTP; certificates and deadlines depend on it",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_skewed_clock_is_noticed() {
        let here = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let level = |date: Option<&str>| clock(here, date).level;
        assert_eq!(level(Some("Sun, 06 Nov 1994 08:49:37 GMT")), Level::Ok);
        assert_eq!(level(Some("Sun, 06 Nov 1994 08:49:40 GMT")), Level::Ok);
        assert_eq!(level(Some("Sun, 06 Nov 1994 08:50:37 GMT")), Level::Warning);
        assert_eq!(level(Some("yesterday")), Level::Warning);
        assert_eq!(level(None), Level::Warning);
    }
}
