//! README.md, typed as it is printed: its commands in their order, in a directory and a network of their own, and what
//! they print compared with what is printed there, but for what differs each time (times, ids, this machine's name).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use remuda_tests::{Deadline, Program, System, binary, demo_model, eventually, skipped};
use rustix::process::Signal;
use serde_json::Value;

/// README's machine, where its output comes from.
const README_HOST: &str = "vm";
const TOKEN: &str = "a-token-for-tests";

static TERMINALS: AtomicU8 = AtomicU8::new(0);

/// A fenced block: its language, the heading above it, its lines.
struct Block {
    heading: String,
    language: String,
    lines: Vec<String>,
}

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap()
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut heading, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block {
                    heading: heading.clone(),
                    language: language.to_owned(),
                    lines: Vec::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line.to_owned()),
            (None, None) => {
                if let Some(text) = line.strip_prefix("## ") {
                    text.clone_into(&mut heading);
                }
            }
        }
    }
    blocks
}

/// A command of the tour and what it prints.
struct Step {
    command: String,
    prints: Vec<String>,
}

/// `$ command`, with further lines after a backslash, and then what it prints.
fn steps(block: &Block) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut goes_on = false;
    for line in &block.lines {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.to_owned(),
                prints: Vec::new(),
            });
        } else {
            let step = steps.last_mut().expect("a tour begins with a command");
            if goes_on {
                step.command.push('\n');
                step.command.push_str(line);
            } else {
                step.prints.push(line.clone());
                continue;
            }
        }
        goes_on = line.ends_with('\\');
    }
    steps
}

/// A terminal: a directory, a network with nothing but loopback, the built programs on PATH.
struct Terminal {
    network: String,
    directory: PathBuf,
    host: String,
}

impl Terminal {
    fn new(directory: PathBuf) -> Self {
        let number = TERMINALS.fetch_add(1, Ordering::Relaxed);
        let network = format!("rmd{}r{number}", std::process::id());
        let programs = directory.join("bin");
        std::fs::create_dir_all(&programs).unwrap();
        for name in ["remuda", "orchestratord", "pool-managerd", "engine-provisioner"] {
            std::os::unix::fs::symlink(binary(name), programs.join(name)).unwrap();
        }
        for arguments in [
            &["netns", "add", &network][..],
            &["-n", &network, "link", "set", "lo", "up"],
        ] {
            let output = Command::new("ip").args(arguments).output().unwrap();
            assert!(output.status.success(), "ip {arguments:?}: {output:?}");
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        Self {
            network,
            directory,
            host: host.trim().to_owned(),
        }
    }

    fn shell(&self, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.network]).args(program);
        let path = std::env::var("PATH").unwrap();
        command
            .current_dir(&self.directory)
            .env("PATH", format!("{}/bin:{path}", self.directory.display()))
            .env("XDG_DATA_HOME", self.directory.join("share"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        for name in [
            "REMUDA_URL",
            "REMUDA_API_KEY",
            "REMUDA_CA",
            "REMUDA_LOG",
            "LLORCH_API_TOKEN",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Types a command and gives what it prints, on whichever of the two ways.
    fn types(&self, command: &str) -> String {
        let log = self.directory.join("typed");
        let file = std::fs::File::create(&log).unwrap();
        let status = self
            .shell(&["bash", "-c", command])
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .status()
            .unwrap();
        let printed = std::fs::read_to_string(&log).unwrap();
        assert!(status.success(), "{command}: {status}\n{printed}");
        printed
    }

    /// Types a command that stays.
    fn stays(&self, command: &str, name: &str) -> Program {
        let script = format!("exec {command}");
        Program::start(
            name,
            self.shell(&["bash", "-c", &script]),
            self.directory.join(name),
        )
    }

    /// Types a command on a terminal, and each of `lines` when it is asked for one.
    fn converses(&self, command: &str, lines: &[&str]) -> String {
        let log = self.directory.join("conversation");
        let file = std::fs::File::create(&log).unwrap();
        let mut shell = self.shell(&["script", "--quiet", "--return", "--command", command, "/dev/null"]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(file).spawn().unwrap();
        let mut keyboard = shell.stdin.take().unwrap();
        let printed = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).replace('\r', "");
        for (count, line) in lines.iter().enumerate() {
            eventually("a prompt", Deadline::default(), || {
                let printed = printed();
                let prompts = printed.lines().filter(|line| line.starts_with("> ")).count();
                (prompts == count + 1 && printed.ends_with("> ")).then_some(())
            });
            writeln!(keyboard, "{line}").unwrap();
        }
        let status = shell.wait().unwrap();
        assert!(status.success(), "{command}: {}", printed());
        printed()
    }

    fn agrees(&self, step: &Step, printed: &str) {
        let expected = lasting(&step.prints.join("\n"), README_HOST);
        let printed_lines = lasting(printed, &self.host);
        let shown = format!(
            "{}\nREADME:\n{expected:#?}\nprinted:\n{printed_lines:#?}",
            step.command
        );
        // Three dots stand for whatever more comes.
        match expected.iter().position(|line| line == "...") {
            None => assert_eq!(expected, printed_lines, "{shown}"),
            Some(dots) => {
                assert_eq!(dots + 1, expected.len(), "dots stand at the end: {shown}");
                let begins = printed_lines.len() > dots && printed_lines[..dots] == expected[..dots];
                assert!(begins, "{shown}");
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.network]).output();
    }
}

/// Lines without what differs each time: times, dates, ids, the machine's name, the width of columns.
fn lasting(printed: &str, host: &str) -> Vec<String> {
    printed.lines().map(|line| lasting_words(line, host)).collect()
}

fn lasting_words(line: &str, host: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let bare = word.trim_end_matches([',', ';']);
        let after = &word[bare.len()..];
        let number_before = words.last().is_some_and(|word| word.parse::<f64>().is_ok());
        let lasts = if matches!(bare, "ms" | "s" | "µs") && number_before {
            words.pop();
            "TIME"
        } else if is_id(bare) {
            "ID"
        } else if bare.len() == "2026-01-01T00:00:00.000Z".len() && bare.ends_with('Z') {
            "DATE"
        } else if bare == host {
            "HOST"
        } else if let Some(rest) = bare.strip_prefix(host).filter(|rest| rest.starts_with('/')) {
            words.push(format!("HOST{rest}{after}"));
            continue;
        } else {
            bare
        };
        words.push(format!("{lasts}{after}"));
    }
    words.join(" ")
}

/// A task's id: 36 letters, four of them dashes.
fn is_id(word: &str) -> bool {
    if word
        .strip_prefix("v1-")
        .is_some_and(|rest| rest.split('-').count() == 3)
    {
        return true;
    }
    word.len() == 36
        && word.matches('-').count() == 4
        && word.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

fn id_in(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| is_id(word))
}

fn can_replay() -> bool {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let able = rustix::process::getuid().is_root()
        && Command::new("ip").arg("-V").output().is_ok()
        && ["curl", "jq", "script"].iter().all(|program| has(program));
    if !able {
        skipped("readme", "needs root, iproute2, curl, jq and script");
    }
    able
}

#[test]
fn the_tour_is_what_really_happens() {
    if !can_replay() {
        return;
    }
    let system = System::new();
    let terminal = Terminal::new(system.directory("tour"));
    let readme = readme();
    let blocks = blocks(&readme);
    let of = |heading: &str| {
        blocks
            .iter()
            .filter(|block| block.heading == heading)
            .collect::<Vec<_>>()
    };

    // The two commands. What cargo would build is built.
    let commands = of("The two commands");
    let [first, second, ..] = &commands[..] else {
        panic!("two commands")
    };
    let built = |block: &Block| {
        let line = block.lines[0].as_str();
        let rest = line.strip_prefix("cargo run --release -p remuda -- ");
        format!(
            "remuda {}",
            rest.unwrap_or_else(|| panic!("not by cargo: {line}"))
        )
    };
    assert!(terminal.types(&built(first)).ends_with("\n201\n"));
    let mut up = terminal.stays(&built(second), "second command");
    up.wait_for("the address", |line| line.contains("Remuda is up").then_some(()));
    up.signal(Signal::TERM);
    assert!(up.wait().success());

    let mut steps: Vec<Step> = of("A first tour").into_iter().flat_map(steps).collect();
    assert!(steps.len() >= 8, "a tour of {} steps", steps.len());
    let (mut up, mut task) = (None::<Program>, None::<(String, String)>);
    for step in &mut steps {
        if let Some((printed_there, here)) = &task {
            step.command = step.command.replace(printed_there, here);
        }
        let printed = if step.command == "remuda up" {
            let mut program = terminal.stays(&step.command, "remuda up");
            program.wait_for("its last line", |line| line.contains("remuda chat").then_some(()));
            up.insert(program).output()
        } else if step.command == "remuda chat" {
            let typed = step.prints.iter().filter_map(|line| line.strip_prefix("> "));
            terminal.converses(&step.command, &typed.collect::<Vec<_>>())
        } else {
            terminal.types(&step.command)
        };
        terminal.agrees(step, &printed);
        if let Some(there) = step.prints.iter().find_map(|line| id_in(line)) {
            task = id_in(&printed).map(|here| (there.to_owned(), here.to_owned()));
        }
    }

    // What the text after it names, too.
    let (_, after) = readme.split_once("> /exit\n```\n").unwrap();
    let (after, _) = after.split_once("\n## ").unwrap();
    let after = after.replace('\n', " ");
    let named: Vec<&str> = after.split('`').skip(1).step_by(2).collect();
    assert!(
        named.len() >= 4 && named.iter().all(|command| command.starts_with("remuda ")),
        "{named:?}"
    );
    let (_, task) = task.expect("the tour shows a task");
    // From the first key on, every request needs one: it is made last.
    let (keys, open): (Vec<&str>, Vec<&str>) = named
        .into_iter()
        .partition(|command| command.starts_with("remuda keys"));
    for command in open.into_iter().chain(keys) {
        terminal.types(&command.replace("ID", &task).replace("NAME", "me"));
    }
    // The running daemon learns of the key by itself.
    eventually("every request to need a key", Deadline::default(), || {
        let refused = terminal.shell(&["remuda", "pools"]).output().unwrap();
        (refused.status.code() == Some(77)).then_some(())
    });
    let mut up = up.expect("the tour starts it");
    up.signal(Signal::INT);
    assert!(up.wait().success());
}

#[test]
fn several_machines_get_together_as_printed() {
    if !can_replay() {
        return;
    }
    let system = System::new();
    let terminal = Terminal::new(system.directory("several"));
    let blocks = blocks(&readme());
    let of = |language: &str| {
        let mut found = blocks
            .iter()
            .filter(|b| b.heading == "Several machines" && b.language == language);
        found.next().unwrap_or_else(|| panic!("no block of {language:?}"))
    };
    let settings = of("toml").lines.join("\n");
    let settings = settings.replace("hf:ORG/REPO/FILE.gguf", demo_model().to_str().unwrap());
    std::fs::write(terminal.directory.join("remuda.toml"), settings).unwrap();
    // All machines are this one.
    let typed = of("").lines.join("\n").replace("\\\n", " ");
    let typed = typed.replace("TOKEN=... ", &format!("TOKEN={TOKEN} "));
    let typed = typed
        .replace("//gpu1:", "//127.0.0.1:")
        .replace("//control-plane:", "//127.0.0.1:");
    let commands: Vec<&str> = typed
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .collect();
    let [control_plane, node] = commands[..] else {
        panic!("not two commands: {commands:?}")
    };
    let mut plane = terminal.stays(&format!("env {control_plane}"), "control plane");
    plane.wait_for("the address", |line| line.contains("listening").then_some(()));
    let mut node = terminal.stays(&format!("env {node}"), "node");
    node.wait_for("its registration", |line| {
        line.contains("registered").then_some(())
    });
    let ask = |path: &str, more: &str| -> Value {
        let url = format!("http://127.0.0.1:8080{path}");
        let printed = terminal.types(&format!(
            "curl -s -H 'authorization: Bearer {TOKEN}' {url} {more}"
        ));
        serde_json::from_str(&printed).unwrap_or(Value::Null)
    };
    eventually("two replicas of four slots", Deadline::default(), || {
        (ask("/v2/pools/small", "")["slots_free"] == 8).then_some(())
    });
    assert_eq!(ask("/v2/nodes", "")[0]["node_id"], "gpu1");
    let model = ask("/v1/models", "")["data"][0]["id"].clone();
    let body = format!(
        "-H 'content-type: application/json' -d '{{\"model\": {model}, \"messages\": [{{\"role\": \"user\", \"content\": \"3*67\"}}]}}'"
    );
    let answer = ask("/v1/chat/completions", &body);
    assert_eq!(answer["choices"][0]["message"]["content"], "201", "{answer}");
    for program in [&mut node, &mut plane] {
        program.signal(Signal::TERM);
        assert!(program.wait().success());
    }
}
