//! `remuda login` with the real CLIs, the whole way: from the address that a person opens to the sealed login. Only the
//! providers' servers are fakes ([`fake_issuers`]).

mod fake_issuers;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fake_issuers::{CANARY, CODE, FakeIssuers};
use remuda_tests::{binary, skipped};
use serde_json::Value;

use crate::agents::missing;

/// A machine on which somebody logs in at one agent.
struct Machine {
    directory: tempfile::TempDir,
    agent: &'static str,
    issuers: FakeIssuers,
}

impl Machine {
    /// None where something is missing.
    async fn new(test: &str, agent: &'static str) -> Option<Self> {
        if let Some(program) = missing(&["bwrap", "npm", "node"]) {
            skipped(test, &format!("needs {program}"));
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let certificates = directory.path().join("certificates");
        let issuers = FakeIssuers::start(&certificates).await;
        let root = directory.path().to_owned();
        let prepared = tokio::task::spawn_blocking(move || prepare(&root, &certificates, agent)).await;
        if let Err(why) = prepared.unwrap() {
            skipped(test, &why);
            return None;
        }
        Some(Self {
            directory,
            agent,
            issuers,
        })
    }

    fn remuda(&self, arguments: &[&str]) -> Command {
        let root = self.directory.path();
        let mut command = Command::new(binary("remuda"));
        command
            .args(arguments)
            .current_dir(root)
            .env("XDG_DATA_HOME", root.join("data"))
            .env("POOL_MANAGERD_PROFILES_DIR", root.join("profiles"))
            .env("POOL_MANAGERD_AGENTS_INSTALL_DIR", root.join("installed"))
            .env(
                "POOL_MANAGERD_AGENT_PROXIES",
                format!("socks5h://{}", self.issuers.proxy),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `remuda login AGENT`. `enter` is given all that was said so far, and says once what the person enters.
    async fn log_in(&self, enter: impl Fn(&str) -> Option<String> + Send + 'static) -> (bool, String) {
        let mut child = self.remuda(&["login", self.agent]).spawn().unwrap();
        let talk = tokio::task::spawn_blocking(move || {
            let said = talk(&mut child, &enter);
            (child.wait().unwrap().success(), said)
        });
        talk.await.unwrap()
    }

    async fn is_logged_in(&self) -> bool {
        let mut status = self.remuda(&["login", "status", self.agent, "--json"]);
        let output = tokio::task::spawn_blocking(move || status.output())
            .await
            .unwrap()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        status["is_logged_in"].as_bool().unwrap()
    }

    /// No file of this machine holds a piece of the login in the open.
    fn check_sealed(&self) {
        let mut left: Vec<PathBuf> = vec![self.directory.path().join("data")];
        let mut files = 0;
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .flatten()
                        .map(|entry| entry.path()),
                );
            } else if path.is_file() {
                let content = std::fs::read(&path).unwrap();
                let holds = |canary: &str| {
                    content
                        .windows(canary.len())
                        .any(|window| window == canary.as_bytes())
                };
                assert!(
                    !holds(CANARY) && !holds(&CANARY.replace('-', "_")),
                    "{}",
                    path.display()
                );
                files += 1;
            }
        }
        assert!(files > 0, "a sealed home was kept");
    }
}

/// The CLI with a profile that differs in one thing: it believes the fakes' CA, which lies beside the CLI.
fn prepare(root: &Path, certificates: &Path, agent: &str) -> Result<(), String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = cache
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("remuda/agents");
    let own = agents::Profile::builtin(agent).unwrap().unwrap();
    let installed = agents::install::install(&own, &cache, &mut |_| {}).map_err(|error| error.to_string())?;
    let to = agents::install::place(&own, &root.join("installed"));
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = ["-al", "-a"].into_iter().any(|flags| {
        let copied = Command::new("cp").arg(flags).arg(&installed).arg(&to).status();
        copied.is_ok_and(|status| status.success())
    });
    assert!(copied, "{} cannot be copied", installed.display());
    std::fs::copy(certificates.join("ca.pem"), to.join("own-ca.pem")).unwrap();
    let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agents");
    let profiles = root.join("profiles");
    std::fs::create_dir_all(profiles.join(agent)).unwrap();
    let lock = format!("{agent}/package-lock.json");
    std::fs::copy(agents.join(&lock), profiles.join(&lock)).unwrap();
    let profile = std::fs::read_to_string(agents.join(format!("{agent}.toml"))).unwrap();
    let place = "\"{{ INSTALL }}/own-ca.pem\"";
    let believes = format!("[environment]\nSSL_CERT_FILE = {place}\nNODE_EXTRA_CA_CERTS = {place}\n");
    let profile = if profile.contains("\n[environment]\n") {
        profile.replace("[environment]\n", &believes)
    } else {
        profile.replace("\n[model]\n", &format!("\n{believes}\n[model]\n"))
    };
    std::fs::write(profiles.join(format!("{agent}.toml")), profile).unwrap();
    Ok(())
}

/// Reads what a program says on standard error, and enters a line as soon as there is one to enter.
fn talk(child: &mut Child, enter: &dyn Fn(&str) -> Option<String>) -> String {
    let mut stdin = child.stdin.take();
    let mut stderr = child.stderr.take().unwrap();
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut piece) {
        said.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&said);
        if let Some(line) = stdin.is_some().then(|| enter(&text)).flatten() {
            let mut stdin = stdin.take().unwrap();
            stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
    }
    String::from_utf8(said).unwrap()
}

/// The `state` in the address that Claude Code shows.
fn state(said: &str) -> Option<String> {
    let (_, address) = said.split_once("Open this address:")?;
    let address = address
        .split_whitespace()
        .find(|word| word.contains("https://"))?;
    let (_, state) = address.split_once("state=")?;
    let is_of_it = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    Some(state.chars().take_while(is_of_it).collect())
}

#[tokio::test]
async fn codex_by_a_device_code() {
    let Some(machine) = Machine::new("codex_by_a_device_code", "codex").await else {
        return;
    };
    assert!(!machine.is_logged_in().await);
    let (succeeded, said) = machine.log_in(|_| None).await;
    assert!(succeeded, "{said}");
    assert!(said.contains("https://auth.openai.com/codex/device"), "{said}");
    assert!(
        said.contains("enter this code there") && said.contains("ABCD-EFGH"),
        "{said}"
    );
    assert!(!said.contains(CANARY), "{said}");
    let polls = machine.issuers.asked("/api/accounts/deviceauth/token");
    assert!(
        polls.len() >= 2 && polls[0].body.contains("device-1"),
        "{polls:?}"
    );
    let tokens = machine.issuers.asked("/oauth/token");
    assert_eq!(
        (tokens.len(), tokens[0].host.as_str()),
        (1, "auth.openai.com"),
        "{tokens:?}"
    );
    // Another process of Remuda opens the sealed home, and the CLI in it says that it is logged in.
    assert!(machine.is_logged_in().await);
    machine.check_sealed();
}

#[tokio::test]
async fn claude_code_by_a_code_to_paste() {
    let Some(machine) = Machine::new("claude_code_by_a_code_to_paste", "claude").await else {
        return;
    };
    let (succeeded, said) = machine
        .log_in(|said| Some(format!("wrong#{}", state(said)?)))
        .await;
    assert!(!succeeded, "{said}");
    assert!(!machine.is_logged_in().await);

    let (succeeded, said) = machine
        .log_in(|said| Some(format!("{CODE}#{}", state(said)?)))
        .await;
    assert!(succeeded, "{said}");
    assert!(!said.contains(CANARY), "{said}");
    let tokens = machine.issuers.asked("/v1/oauth/token");
    let last: Value = serde_json::from_str(&tokens.last().unwrap().body).unwrap();
    assert_eq!(
        (&last["code"], last["state"].as_str()),
        (&CODE.into(), state(&said).as_deref())
    );
    let profile = machine.issuers.asked("/api/oauth/profile");
    let with = profile.last().unwrap().authorization.clone();
    assert_eq!(with, Some(format!("Bearer sk-ant-oat01-{CANARY}")));
    assert!(machine.is_logged_in().await);
    machine.check_sealed();
}
