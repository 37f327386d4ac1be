//! Starts that are broken off at the worst moment: `bwrap` has forked what becomes init, and has not said which it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::driver::{InitProgram, Limits};
use crate::rendezvous::Rendezvous;

/// Runs the real `bwrap`, whose child waits for ever, with what it says of itself going nowhere. In a session of its own,
/// as that child soon is: whoever ends the group of the first process does not reach it.
const STAND_IN: &str = r#"#!/bin/bash
[ "$1" = --version ] && exec bwrap "$@"
mkfifo "DIRECTORY/never.$$"
exec 8<>"DIRECTORY/never.$$"
shift_to_info() { while [ "$1" != --info-fd ]; do shift; done; echo "$2"; }
info=$(shift_to_info "$@")
eval "setsid DIRECTORY/bwrap --block-fd 8 \"\$@\" $info>/dev/null &"
until [ -n "$(cat /proc/$!/task/$!/children)" ]; do :; done
touch "DIRECTORY/there"
THEN
"#;

/// A directory with a stand-in for `bwrap` that does `then` once the child is there. None where there is no bwrap.
fn stand_in(then: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let real = std::env::split_paths(&path)
        .map(|directory| directory.join("bwrap"))
        .find(|path| path.is_file());
    let Some(real) = real else {
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI nothing is skipped: bwrap"
        );
        return None;
    };
    // Not below the place where what a sandbox is given is staged.
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    // Any user must reach it, because each sandbox is one.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let own = directory.path().display().to_string();
    std::os::unix::fs::symlink(real, directory.path().join("bwrap")).unwrap();
    let script = directory.path().join("stand-in");
    let text = STAND_IN.replace("DIRECTORY", &own).replace("THEN", then);
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Some((directory, script))
}

/// A driver on a machine where no cgroup can be used, so that none tells which processes there are.
fn driver(directory: &Path, program: &Path) -> Inner {
    let mut settings = BubblewrapSettings::new(&directory.join("records"));
    settings.program = program.to_owned();
    Inner {
        records: Records::open(&settings.directory, settings.users.clone()).unwrap(),
        cgroups: Cgroups::default(),
        is_root: rustix::process::geteuid().is_root(),
        settings,
    }
}

fn request(rendezvous: &Rendezvous) -> CreateRequest {
    let id = SandboxId::random();
    CreateRequest {
        connect: rendezvous.expect(&id).unwrap().connect(),
        id,
        agent_directory: None,
        image: None,
        limits: Limits::default(),
        environment: Vec::new(),
        init: InitProgram {
            path: PathBuf::from("/bin/true"),
            arguments: Vec::new(),
        },
    }
}

/// Processes whose command line names the directory.
fn left(directory: &Path) -> Vec<String> {
    let mark = directory.display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(&mark))
        .collect()
}

#[tokio::test]
async fn what_a_dead_bwrap_leaves_is_ended_at_once() {
    let Some((directory, program)) = stand_in("kill -9 $! $$") else {
        return;
    };
    let driver = driver(directory.path(), &program);
    let (rendezvous, _returned) = Rendezvous::open(directory.path()).unwrap();
    let request = request(&rendezvous);
    let made = driver.create(&request);
    assert!(matches!(made, Err(DriverError::Create { .. })), "{made:?}");
    assert!(directory.path().join("there").exists(), "{made:?}");
    let left = left(directory.path());
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(driver.list().unwrap(), []);
    assert_eq!(driver.records.all().unwrap().len(), 0);
}

#[tokio::test]
async fn a_node_that_comes_back_ends_what_was_half_made() {
    let Some((directory, program)) = stand_in("wait") else {
        return;
    };
    let there = directory.path().join("there");
    let (rendezvous, _returned) = Rendezvous::open(directory.path()).unwrap();
    let request = request(&rendezvous);
    let first = driver(directory.path(), &program);
    let making = std::thread::spawn(move || first.create(&request));
    let end = Instant::now() + START_TIMEOUT;
    while !there.exists() {
        assert!(
            Instant::now() < end,
            "it does not begin: {:?}",
            left(directory.path())
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    // Another life of the node: it knows the record and nothing else.
    let second = driver(directory.path(), &program);
    assert_eq!(second.list().unwrap(), []);
    let left = left(directory.path());
    assert!(left.is_empty(), "{left:?}");
    assert!(making.join().unwrap().is_err());
}
