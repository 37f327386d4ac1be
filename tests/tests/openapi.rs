//! The OpenAPI document tells the truth: a fuzzer that believes every word of it finds nothing.

use std::process::Command;

use fake_engine::{FakeEngine, Settings};
use remuda_tests::{Program, System, clients, python, skipped};

#[tokio::test]
async fn schemathesis_finds_nothing() {
    let Some(python) = python() else {
        return skipped("schemathesis_finds_nothing", "needs python3 with venv and pip");
    };
    let engine = FakeEngine::start(Settings::default()).unwrap();
    let system = System::new();
    // The shortest id that fits the document's pattern, so that the fuzzer meets the pool.
    let settings = format!(
        "[[pools]]\nid = \"0\"\nengine = \"openai\"\nurl = {:?}\nslots = 4\n",
        engine.url()
    );
    let mut plane = system.home(&settings, &[("ORCHD_POOL_UNREADY_WAIT_MS", "500")]);
    plane.wait_for_replicas("0", 1).await;

    let directory = system.directory("schemathesis");
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command
        .current_dir(&directory)
        .env("PYTHONPATH", clients("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .arg("--config-file")
        .arg(clients("python").join("schemathesis.toml"))
        .arg("run")
        .arg(format!("{}/openapi.json", plane.url))
        .args(["--header", "Authorization: Bearer a-token-for-tests"])
        .args(["--seed", "1", "--max-examples", "20", "--workers", "1"])
        .args([
            "--request-timeout",
            "20",
            "--generation-database",
            "none",
            "--no-color",
        ])
        // A slow machine is no finding.
        .args([
            "--suppress-health-check",
            "all",
            "--warnings",
            "off",
            "--continue-on-failure",
        ]);
    let mut fuzzer = Program::start("schemathesis", command, directory.join("log"));
    // The harness waits for less time than the fuzzer may need.
    let started = std::time::Instant::now();
    while fuzzer.is_running() {
        assert!(
            started.elapsed().as_secs() < 240,
            "schemathesis does not end:\n{}",
            fuzzer.output()
        );
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let ended = fuzzer.wait();
    let found = fuzzer.output();
    assert!(ended.success(), "{found}");
    assert!(found.contains("No issues found"), "{found}");

    assert!(plane.program.is_running());
    let log = plane.program.output();
    assert!(!log.contains("panicked"), "{log}");
}
