//! Real children: they end as asked, leave nobody behind, and die with their parent however it dies.

#![expect(clippy::unwrap_used, reason = "a test may end by panicking")]

use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use process::{Child, Exit, Identity, Lifetime, Output, Request, spawn};

const LONG: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

fn start(script: &str, lifetime: Lifetime) -> (Child, mpsc::Receiver<Exit>) {
    let (sender, exits) = mpsc::channel();
    let request = Request {
        command: shell(script),
        lifetime,
        output: Output::Discard,
    };
    let child = spawn(request, move |exit| sender.send(exit).unwrap()).unwrap();
    (child, exits)
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen within {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_end_is_told_once_with_its_code() {
    let (child, exits) = start("exit 7", Lifetime::Tied);
    assert_eq!(
        exits.recv_timeout(LONG).unwrap(),
        Exit {
            code: Some(7),
            signal: None
        }
    );
    assert_eq!(
        child.wait(LONG),
        Some(Exit {
            code: Some(7),
            signal: None
        })
    );
    assert!(!child.identity().is_alive());
    assert!(!child.kill(), "nobody is there to be killed");
    assert!(exits.recv_timeout(LONG).is_err(), "the keeper is done");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let request = Request {
        command: Command::new("/nowhere/llama-server"),
        lifetime: Lifetime::Tied,
        output: Output::Discard,
    };
    let error = spawn(request, |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "cannot start /nowhere/llama-server");
}

#[test]
fn the_whole_group_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("grandchild");
    let script = format!("sleep 600 & echo $! > {}; trap '' TERM; wait", note.display());
    let (child, _exits) = start(&script, Lifetime::Tied);
    let pid = wait_for("the grandchild's start", || {
        std::fs::read_to_string(&note).ok()?.trim().parse().ok()
    });
    let grandchild = Identity::of(pid).unwrap();
    assert!(child.identity().is_alive());
    child.kill();
    assert_eq!(child.wait(LONG).unwrap().signal, Some(9));
    wait_for("the grandchild's end", || (!grandchild.is_alive()).then_some(()));
}

#[test]
fn a_grandchild_does_not_outlive_a_child_that_ended_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("grandchild");
    let script = format!("sleep 600 & echo $! > {}; exit 0", note.display());
    let (child, _exits) = start(&script, Lifetime::Tied);
    assert!(child.wait(LONG).unwrap().is_success());
    let pid: u32 = std::fs::read_to_string(&note).unwrap().trim().parse().unwrap();
    wait_for("the grandchild's end", || {
        Identity::of(pid).is_none().then_some(())
    });
}

#[test]
fn a_tied_child_dies_when_it_is_dropped_and_a_detached_one_does_not() {
    let (tied, _) = start("exec sleep 600", Lifetime::Tied);
    let (detached, _) = start("exec sleep 600", Lifetime::Detached);
    let (tied_identity, detached_identity) = (tied.identity().clone(), detached.identity().clone());
    drop(tied);
    drop(detached);
    assert!(process::wait_until_gone(&tied_identity, LONG));
    assert!(detached_identity.is_alive());
    assert!(process::terminate(&detached_identity, LONG).unwrap());
    assert!(!detached_identity.is_alive());
}

#[test]
fn one_that_ignores_a_request_to_end_is_ended_after_the_grace() {
    let (child, _) = start("trap '' TERM; while :; do sleep 0.01; done", Lifetime::Detached);
    let identity = child.identity().clone();
    // Gives the shell time to set its trap; without it the test would still pass, but prove less.
    wait_for("the trap", || ignores_term(identity.pid).then_some(()));
    assert!(process::terminate(&identity, Duration::from_millis(50)).unwrap());
    assert!(!identity.is_alive());
}

fn ignores_term(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .unwrap_or("0");
    u64::from_str_radix(ignored.trim(), 16).unwrap_or(0) & (1 << 14) != 0
}

#[test]
fn output_goes_to_the_log_and_line_by_line_to_the_tap() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("engine.log");
    let (sender, lines) = mpsc::channel();
    let output = Output::Log {
        path: path.clone(),
        bytes_max: 4096,
        on_line: Some(Box::new(move |line| sender.send(line.to_owned()).unwrap())),
    };
    let script = "echo one; printf 'two\\rthree' >&2; exit 3";
    let child = spawn(
        Request {
            command: shell(script),
            lifetime: Lifetime::Tied,
            output,
        },
        |_| (),
    )
    .unwrap();
    assert_eq!(child.wait(LONG).unwrap().code, Some(3));
    assert_eq!(lines.iter().collect::<Vec<_>>(), ["one", "two", "three"]);
    assert_eq!(process::log::tail(&path, 9), ["one", "two\rthree"]);
}

/// When this is set, this test program is the parent that is killed: see the test below.
const PARENT: &str = "REMUDA_TEST_PARENT_NOTE";

#[test]
fn a_tied_child_dies_with_its_parent_at_once() {
    if let Ok(note) = std::env::var(PARENT) {
        let (child, _exits) = start("exec sleep 600", Lifetime::Tied);
        std::fs::write(&note, child.identity().pid.to_string()).unwrap();
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("child");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_tied_child_dies_with_its_parent_at_once"])
        .env(PARENT, &note);
    let parent = spawn(
        Request {
            command,
            lifetime: Lifetime::Tied,
            output: Output::Discard,
        },
        |_| (),
    )
    .unwrap();
    let pid = wait_for("the child's start", || {
        std::fs::read_to_string(&note).ok()?.parse().ok()
    });
    let child = Identity::of(pid).unwrap();
    parent.kill();
    assert!(
        process::wait_until_gone(&child, Duration::from_secs(1)),
        "the child outlived its parent"
    );
}
