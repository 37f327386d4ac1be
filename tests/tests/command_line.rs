//! `remuda run` and `remuda up`, as people start them, with a real engine.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use remuda_tests::{Deadline, Program, System, binary, eventually, is_alive};
use rustix::process::Signal;

/// `remuda` with data of its own. The cache is the user's: the engine is there.
fn remuda(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("remuda"));
    command
        .args(arguments)
        .current_dir(directory)
        .env("XDG_DATA_HOME", directory)
        .stdin(Stdio::null());
    for name in ["REMUDA_URL", "REMUDA_API_KEY", "REMUDA_LOG"] {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The engines that this process keeps.
fn engines_of(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            return false;
        };
        let parent = rest.split(' ').nth(1).and_then(|parent| parent.parse().ok());
        name.contains("(llama-server") && parent == Some(pid)
    })
    .collect()
}

fn wait_for_engine(program: &Program) -> u32 {
    eventually("an engine", Deadline::default(), || {
        engines_of(program.pid()).first().copied()
    })
}

fn wait_until_gone(engine: u32) {
    eventually("the end of the engine", Deadline(Duration::from_secs(20)), || {
        (!is_alive(engine)).then_some(())
    });
}

#[test]
fn the_first_command_says_201() {
    let system = System::new();
    let directory = system.directory("run");
    let output: Output = remuda(&directory, &["run", "3*67"]).output().unwrap();
    assert_eq!(text(&output.stdout), "201\n", "{output:?}");
    assert!(
        text(&output.stderr).contains("demo model"),
        "it says what it is: {output:?}"
    );
    assert_eq!(output.status.code(), Some(0));
    let left: Vec<_> = std::fs::read_dir(&directory).unwrap().flatten().collect();
    assert!(
        left.is_empty(),
        "a run leaves nothing where it was started: {left:?}"
    );
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let system = System::new();
    let directory = system.directory("runs");
    let start = |prompt: &str| {
        remuda(&directory, &["run", prompt, "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let runs = [(start("3*67"), "201"), (start("7*12"), "84")];
    for (run, expect) in runs {
        let output = run.wait_with_output().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["text"], expect, "{output:?}");
    }
}

#[test]
fn an_interrupted_run_leaves_no_engine() {
    let system = System::new();
    let directory = system.directory("run");
    for (signal, code) in [
        (Signal::INT, Some(130)),
        (Signal::TERM, Some(130)),
        (Signal::KILL, None),
    ] {
        let command = remuda(&directory, &["run", "count", "--max-tokens", "100000"]);
        let mut run = Program::start("remuda run", command, directory.join(format!("log-{signal:?}")));
        let engine = wait_for_engine(&run);
        eventually("the answer's beginning", Deadline::default(), || {
            run.output().contains("1 2 3").then_some(())
        });
        run.signal(signal);
        assert_eq!(run.wait().code(), code, "{signal:?}");
        wait_until_gone(engine);
    }
}

#[test]
fn up_serves_until_it_is_told_to_end() {
    let system = System::new();
    let directory = system.directory("up");
    let mut up = Program::start(
        "remuda up",
        remuda(&directory, &["up", "--addr", "127.0.0.1:0"]),
        directory.join("log"),
    );
    let url = up.wait_for("the address", |line| {
        let rest = line.strip_prefix("Remuda is up at ")?;
        Some(rest.split_once(" with")?.0.to_owned())
    });
    let engine = wait_for_engine(&up);
    let output = remuda(&directory, &["run", "7*12", "--url", &url])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "84\n", "{output:?}");
    let output = remuda(&directory, &["pools", "--json", "--url", &url])
        .output()
        .unwrap();
    let pools: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pools[0]["pool_id"], "demo");
    let output = remuda(
        &directory,
        &["tasks", "submit", "3*67", "--follow", "--url", &url],
    )
    .output()
    .unwrap();
    assert_eq!(text(&output.stdout), "201\n", "{output:?}");

    // A key that is made beside the running daemon is asked for soon.
    let output = remuda(
        &directory,
        &["keys", "create", "me", "--quiet", "--role", "admin"],
    )
    .output()
    .unwrap();
    let key = text(&output.stdout).trim().to_owned();
    eventually("the key to be asked for", Deadline::default(), || {
        let output = remuda(&directory, &["pools", "--url", &url]).output().unwrap();
        (output.status.code() == Some(77)).then_some(())
    });
    let output = remuda(&directory, &["pools", "--url", &url, "--api-key", &key])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    up.signal(Signal::TERM);
    assert_eq!(up.wait().code(), Some(0));
    wait_until_gone(engine);
}
