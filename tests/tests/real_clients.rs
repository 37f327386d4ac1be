//! Other people's clients against a running system: the packages of OpenAI, Anthropic and Google, Claude Code and Codex.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use remuda_tests::{ControlPlane, System, clients, demo_model, node, pool_toml, python, skipped};

const TOKEN: &str = "a-token-for-tests";

/// An ordinary user: Claude Code refuses to run as root.
const NOBODY: &str = "65534";

async fn start(system: &System) -> ControlPlane {
    let embeddings = format!(
        "[[pools]]\nid = \"embed\"\nengine = \"llamacpp\"\nmodel = {:?}\nmodel_name = \"remuda-embed\"\nembeddings = true\nslots = 2\n",
        demo_model()
    );
    let plane = system.home(&format!("{}{embeddings}", pool_toml("demo", 1, 4)), &[]);
    plane.wait_for_replicas("demo", 1).await;
    plane.wait_for_replicas("embed", 1).await;
    plane
}

async fn succeeds(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .expect("it starts");
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

#[tokio::test]
async fn the_python_packages() {
    let Some(python) = python() else {
        return skipped("the_python_packages", "needs python3 with venv and pip");
    };
    let system = System::new();
    let plane = start(&system).await;
    for script in ["openai_client.py", "anthropic_client.py", "google_client.py"] {
        let mut command = Command::new(&python);
        command
            .arg(clients("python").join(script))
            .arg(&plane.url)
            .arg(TOKEN);
        succeeds(command).await;
    }
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn the_node_packages() {
    let Some(node) = node() else {
        return skipped("the_node_packages", "needs node and npm");
    };
    let system = System::new();
    let plane = start(&system).await;
    // Modules are looked for beside the script.
    let script = node.join("clients.mjs");
    std::fs::copy(clients("node").join("clients.mjs"), &script).unwrap();
    let mut command = Command::new("node");
    command.arg(script).arg(&plane.url).arg(TOKEN);
    succeeds(command).await;
    plane.wait_for_free_slots("demo").await;
}

/// A home directory of an ordinary user, and a command line that runs as that user with nothing else in its environment.
fn as_nobody(home: &Path, environment: &[(&str, &str)], program: &Path, arguments: &[&str]) -> Command {
    for directory in [home, &home.join("work"), &home.join(".codex")] {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // The way to the home directory has to be open, too; it is a temporary directory of this test.
    if let Some(parent) = home.parent() {
        std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    if rustix::process::getuid().is_root() {
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]);
    } else {
        command = Command::new("env");
    }
    if rustix::process::getuid().is_root() {
        command.arg("env");
    }
    command.arg("-i").arg(format!("HOME={}", home.display()));
    command.arg(format!("PATH={}", std::env::var("PATH").unwrap()));
    command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
    command
        .arg(program)
        .args(arguments)
        .current_dir(home.join("work"))
        .stdin(std::process::Stdio::null());
    command
}

/// The programs, where an ordinary user may read them: the cache of root is not such a place.
fn open_copy(system: &System, node: &Path) -> std::path::PathBuf {
    let directory = system.directory("agents");
    let copied = Command::new("cp")
        .arg("-al")
        .arg(node.join("node_modules"))
        .arg(&directory)
        .status()
        .unwrap();
    if !copied.success() {
        let copied = Command::new("cp")
            .arg("-a")
            .arg(node.join("node_modules"))
            .arg(&directory)
            .status()
            .unwrap();
        assert!(copied.success());
    }
    directory.join("node_modules/.bin")
}

#[tokio::test]
async fn claude_code() {
    let Some(node) = node() else {
        return skipped("claude_code", "needs node and npm");
    };
    let system = System::new();
    let plane = start(&system).await;
    let environment = [
        ("ANTHROPIC_BASE_URL", plane.url.as_str()),
        ("ANTHROPIC_AUTH_TOKEN", TOKEN),
        ("DISABLE_TELEMETRY", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ];
    let arguments = [
        "-p",
        "--model",
        "remuda-demo",
        "--output-format",
        "stream-json",
        "--verbose",
        "3*67",
    ];
    let program = open_copy(&system, &node).join("claude");
    let output = succeeds(as_nobody(
        &system.directory("home"),
        &environment,
        &program,
        &arguments,
    ))
    .await;
    let result = output
        .lines()
        .rev()
        .find(|line| line.contains("\"type\":\"result\""))
        .expect("a result");
    let result: serde_json::Value = serde_json::from_str(result).unwrap();
    assert_eq!(
        (&result["is_error"], &result["result"]),
        (&false.into(), &"201".into()),
        "{result}"
    );
    plane.wait_for_free_slots("demo").await;
}

#[tokio::test]
async fn codex() {
    let Some(node) = node() else {
        return skipped("codex", "needs node and npm");
    };
    let system = System::new();
    let plane = start(&system).await;
    let provider = format!(
        "model_providers.m={{name=\"m\",base_url=\"{}/v1\",wire_api=\"responses\",env_key=\"REMUDA_KEY\"}}",
        plane.url
    );
    let arguments = [
        "exec",
        "--json",
        "--skip-git-repo-check",
        "-s",
        "danger-full-access",
        "-m",
        "remuda-demo",
        "-c",
        "analytics.enabled=false",
        "-c",
        "model_provider=m",
        "-c",
        &provider,
        "3*67",
    ];
    let program = open_copy(&system, &node).join("codex");
    let output = succeeds(as_nobody(
        &system.directory("home"),
        &[("REMUDA_KEY", TOKEN)],
        &program,
        &arguments,
    ))
    .await;
    assert!(
        output.contains("\"text\":\"201\"") && output.contains("turn.completed"),
        "{output}"
    );
    plane.wait_for_free_slots("demo").await;
}
