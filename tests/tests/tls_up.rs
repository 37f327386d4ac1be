//! `remuda up` with a certificate of `remuda certs`: it answers over TLS and nothing else, and every command of
//! docs/cli.md that speaks to a control plane does so with its CA.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use remuda_tests::{Deadline, Program, System, binary, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What of docs/cli.md needs no control plane, or starts its own: tested where it belongs.
const WITHOUT_CONTROL_PLANE: [&str; 17] = [
    "",
    "up",
    "models",
    "models pull",
    "models verify",
    "models rm",
    "tasks",
    "keys",
    "keys create",
    "keys list",
    "keys revoke",
    "certs",
    "certs init",
    "certs issue",
    "certs show",
    "completions",
    // Also asked with --url below; this is the heading without it.
    "models list",
];

struct Up {
    program: Program,
    directory: PathBuf,
    url: String,
    ca: PathBuf,
}

fn remuda(directory: &Path) -> Command {
    let mut command = Command::new(binary("remuda"));
    command
        .current_dir(directory)
        .env("XDG_DATA_HOME", directory.join("share"))
        .stdin(Stdio::null());
    for name in ["REMUDA_URL", "REMUDA_API_KEY", "REMUDA_CA", "REMUDA_LOG"] {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Up {
    fn start(system: &System) -> Self {
        let directory = system.directory("up");
        let certs = directory.join("share/remuda/certs");
        for arguments in [
            &["certs", "init"][..],
            &["certs", "issue", "here", "--host", "127.0.0.1"],
        ] {
            let output = remuda(&directory).args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let settings = format!(
            "[orchestratord]\naddr = \"127.0.0.1:0\"\ntls_cert = {:?}\ntls_key = {:?}\ntls_ca = {:?}\n",
            certs.join("here.pem"),
            certs.join("here.key"),
            certs.join("ca.pem"),
        );
        std::fs::write(directory.join("remuda.toml"), settings).unwrap();
        let mut command = remuda(&directory);
        command.arg("up");
        let mut program = Program::start("remuda up", command, directory.join("log"));
        let url = program.wait_for("the address", |line| {
            let rest = line.strip_prefix("Remuda is up at ")?;
            Some(rest.split_once(" with demo")?.0.to_owned())
        });
        assert!(url.starts_with("https://"), "{url}");
        let ca = certs.join("ca.pem");
        Self {
            program,
            directory,
            url,
            ca,
        }
    }

    /// A command to the control plane, with its CA.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = remuda(&self.directory);
        command
            .args(arguments)
            .args(["--url", &self.url, "--ca"])
            .arg(&self.ca);
        command
    }

    fn types(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text(&output.stdout)
    }

    fn talks(&self, lines: &str) -> Output {
        let mut command = self.command(&["chat"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut chat = command.spawn().unwrap();
        chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        chat.wait_with_output().unwrap()
    }
}

#[tokio::test]
async fn it_answers_over_tls_and_says_so_to_whoever_does_not() {
    let system = System::new();
    let mut up = Up::start(&system);
    let ca = reqwest::Certificate::from_pem(&std::fs::read(&up.ca).unwrap()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .build()
        .unwrap();
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "3*67"}]});
    let path = "/v1/chat/completions";
    let answer = http
        .post(format!("{}{path}", up.url))
        .json(&body)
        .send()
        .await
        .unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "201");

    // What it prints to try is made for this address and this CA.
    let printed = up.program.output();
    let lines: Vec<&str> = printed
        .lines()
        .skip_while(|line| !line.trim().starts_with("curl "))
        .collect();
    let example = lines[..2].join("\n");
    assert!(
        example.contains(&format!("--cacert {}", up.ca.display())),
        "{printed}"
    );
    let output = Command::new("sh").args(["-c", &example]).output().unwrap();
    assert!(text(&output.stdout).contains("\"content\":\"201\""), "{output:?}");

    // Without TLS: a clear answer and no other, in any method.
    let plain = up.url.replace("https://", "http://");
    for request in [
        system.http.get(format!("{plain}/v2/pools")),
        system.http.post(format!("{plain}{path}")).json(&body),
    ] {
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), 400);
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["code"], "INVALID_PARAMS");
        assert!(
            refused["message"].as_str().unwrap().contains("use https://"),
            "{refused}"
        );
    }
    let output = remuda(&up.directory)
        .args(["pools", "--url", &plain])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("use https://"), "{output:?}");

    // Without the CA, or by a name that is not in the certificate.
    let output = remuda(&up.directory)
        .args(["pools", "--url", &up.url])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
    let said = text(&output.stderr);
    assert!(
        said.contains("a CA that is not ours") && said.contains("--ca"),
        "{said}"
    );
    let elsewhere = up.url.replace("127.0.0.1", "localhost");
    let output = up
        .command(&["pools"])
        .args(["--url", &elsewhere])
        .output()
        .unwrap();
    assert!(!output.status.success(), "--url is given twice");
    let mut command = remuda(&up.directory);
    command.args(["pools", "--url", &elsewhere, "--ca"]).arg(&up.ca);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("not for localhost"), "{output:?}");

    up.program.signal(Signal::TERM);
    assert_eq!(up.program.wait().code(), Some(0));
    let printed = up.program.output();
    assert!(
        !printed.contains("\"level\":"),
        "nothing was worth a warning: {printed}"
    );
}

/// The commands of docs/cli.md, without the program's name.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let page = std::fs::read_to_string(page).unwrap();
    let headings = page.lines().filter_map(|line| line.strip_prefix("## remuda"));
    headings.map(|command| command.trim().to_owned()).collect()
}

#[test]
fn every_command_works_with_its_ca() {
    let system = System::new();
    let up = Up::start(&system);
    let mut typed = BTreeSet::new();
    let mut types = |command: &str, more: &[&str]| {
        typed.insert(command.to_owned());
        let arguments: Vec<&str> = command.split(' ').chain(more.iter().copied()).collect();
        up.types(&arguments)
    };

    assert_eq!(types("run", &["3*67"]), "201\n");
    assert_eq!(types("models list", &["--remote"]), "demo\n");
    assert!(types("doctor", &[]).contains("control plane: https://"));
    let benched = types("bench", &["-n", "4", "-c", "2"]);
    assert!(benched.contains('4'), "{benched}");

    let nodes: Value = serde_json::from_str(&types("nodes", &["--json"])).unwrap();
    let node = nodes[0]["node_id"].as_str().unwrap();
    assert!(types("nodes list", &[]).contains(node));
    assert!(types("nodes show", &[node]).contains(node));
    types("nodes drain", &[node]);
    types("nodes undrain", &[node]);

    assert!(types("pools", &[]).contains("demo"));
    assert!(types("pools list", &[]).contains("demo"));
    assert!(types("pools show", &["demo"]).contains("demo"));
    types("pools drain", &["demo"]);
    types("pools undrain", &["demo"]);
    types("pools reload", &["demo"]);
    // A drained pool's engines are ended; who types slowly finds the next one starting.
    eventually("the model to be served again", Deadline::default(), || {
        let listed = up.command(&["models", "list", "--remote"]).output().unwrap();
        (listed.stdout == b"demo\n").then_some(())
    });

    assert_eq!(types("tasks submit", &["3*67", "--follow"]), "201\n");
    let tasks: Value = serde_json::from_str(&types("tasks list", &["--json"])).unwrap();
    let task = tasks[0]["task_id"].as_str().unwrap();
    assert!(types("tasks show", &[task]).contains("completed"));
    assert_eq!(types("tasks events", &[task]), "201\n");
    types("tasks cancel", &[task]);
    // The node of this very process comes back by itself.
    types("nodes remove", &[node, "--yes"]);
    eventually("the node again", Deadline::default(), || {
        up.types(&["nodes"]).contains(node).then_some(())
    });

    let chat = up.talks("7*8\n/exit\n");
    assert!(
        chat.status.success() && text(&chat.stdout).contains("56"),
        "{chat:?}"
    );
    typed.insert("chat".to_owned());

    // There is no agent here to log in to, and it is the control plane that says so.
    for command in ["login", "login status", "login remove"] {
        typed.insert(command.to_owned());
        let arguments: Vec<&str> = command.split(' ').chain(["claude"]).collect();
        let output = up.command(&arguments).output().unwrap();
        assert!(
            !output.status.success() && text(&output.stderr).contains("claude"),
            "{command}: {output:?}"
        );
        assert!(!text(&output.stderr).contains("certificate"), "{output:?}");
    }

    // The task worked in no workspace, which only the control plane can know.
    for command in ["tasks diff", "tasks files", "tasks download"] {
        typed.insert(command.to_owned());
        let arguments: Vec<&str> = command.split(' ').chain([task]).collect();
        let output = up.command(&arguments).output().unwrap();
        assert!(
            !output.status.success() && text(&output.stderr).contains("has no workspace"),
            "{command}: {output:?}"
        );
    }

    // By the environment as well as by flags.
    let mut command = remuda(&up.directory);
    command
        .args(["pools", "list"])
        .env("REMUDA_URL", &up.url)
        .env("REMUDA_CA", &up.ca);
    let output = command.output().unwrap();
    assert!(
        output.status.success() && text(&output.stdout).contains("demo"),
        "{output:?}"
    );

    let known: BTreeSet<String> = WITHOUT_CONTROL_PLANE.map(str::to_owned).into();
    let left: Vec<_> = documented()
        .into_iter()
        .filter(|c| !typed.contains(c) && !known.contains(c))
        .collect();
    assert!(left.is_empty(), "documented and not typed here: {left:?}");
}
