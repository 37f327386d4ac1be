//! A provider that gives a new refresh token for each one that is used and takes a used one for theft, a CLI that
//! refreshes at every run, and a node that is killed all the time.
//!
//! What stands for what: the issuer is a thread that answers on loopback. The sandbox is a directory, because its
//! memory outlives the node's process as a directory does; the CLI runs in it as a function. The node is a process of
//! its own (this test program, started again as `node_process`), and is killed with SIGKILL.
//!
//! Not covered, because nobody can cover it: a CLI that is killed between the issuer's answer and its own file, and a
//! machine that loses its memory before the home was taken back.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use homes::{DirectoryStore, Homes, KeyRing, MasterKey, PlainHome, Ticket};

use super::support::{Disk, Random, Sandbox, agent, owner};

const RUNS: usize = 1000;

/// What the issuer knows.
#[derive(Default)]
struct Tokens {
    /// The one token that may be used.
    current: String,
    used: HashSet<String>,
    issued: usize,
    thefts: usize,
}

struct Issuer {
    address: SocketAddr,
    tokens: Arc<Mutex<Tokens>>,
}

impl Issuer {
    /// Begins with the token `login`, as after a log-in.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tokens = Arc::new(Mutex::new(Tokens {
            current: "login".to_owned(),
            ..Tokens::default()
        }));
        let shared = Arc::clone(&tokens);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut presented = String::new();
                BufReader::new(&mut stream).read_line(&mut presented).unwrap();
                let answer = shared.lock().unwrap().refresh(presented.trim());
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Self { address, tokens }
    }
}

impl Tokens {
    fn refresh(&mut self, presented: &str) -> String {
        if presented != self.current {
            // A token that was used before is a thief's, and whoever has the new one is logged out too.
            self.thefts += usize::from(self.used.contains(presented));
            return "theft".to_owned();
        }
        self.issued += 1;
        let next = format!("token-{}", self.issued);
        self.used
            .insert(std::mem::replace(&mut self.current, next.clone()));
        next
    }
}

/// The CLI: reads its login, refreshes it, writes it aside and renames it, as CLIs do.
fn cli(sandbox: &Path, issuer: SocketAddr) -> Result<(), String> {
    let file = sandbox.join("home/credentials");
    let token = fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let mut stream = TcpStream::connect(issuer).map_err(|error| error.to_string())?;
    stream
        .write_all(format!("{token}\n").as_bytes())
        .map_err(|error| error.to_string())?;
    let mut next = String::new();
    stream
        .read_to_string(&mut next)
        .map_err(|error| error.to_string())?;
    if next == "theft" {
        return Err(format!("{token} was taken for stolen"));
    }
    fs::write(sandbox.join("home/credentials.new"), next).map_err(|error| error.to_string())?;
    fs::rename(sandbox.join("home/credentials.new"), file).map_err(|error| error.to_string())
}

fn homes_in(directory: &Path) -> Homes {
    let store = DirectoryStore::open(&directory.join("homes"), &directory.join("marks")).unwrap();
    Homes::new(
        Arc::new(store),
        KeyRing::new(MasterKey::from_file(&directory.join("key")).unwrap()),
    )
}

/// Packs the home in the sandbox: here it is one file.
fn pack(sandbox: &Path) -> PlainHome {
    let mut home = PlainHome::new();
    home.extend(&fs::read(sandbox.join("home/credentials")).unwrap())
        .unwrap();
    home
}

/// The node: what a former one left is salvaged; then one sandbox, taken back whenever it says that it changed.
///
/// Run as a process of its own by the test below; as a test it is empty.
#[test]
fn node_process() {
    let Some(directory) = std::env::var_os("HOMES_TEST_NODE") else {
        return;
    };
    let directory = Path::new(&directory);
    let homes = homes_in(directory);
    let (ann, claude) = (owner("ann"), agent("claude"));
    let sandbox = directory.join("sandbox");
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{line}").and_then(|()| out.flush()).unwrap();
    };
    if let Ok(label) = fs::read_to_string(sandbox.join("label")) {
        homes
            .salvage(&ann, &claude, label.parse().unwrap(), &pack(&sandbox))
            .unwrap();
    }
    // Only what was salvaged, or never had a home, goes.
    if sandbox.exists() {
        fs::remove_dir_all(&sandbox).unwrap();
    }
    let opened = homes.open(&ann, &claude).unwrap();
    let mut ticket = opened.ticket;
    fs::create_dir_all(sandbox.join("home")).unwrap();
    let home = opened.home.expect("there is a login");
    fs::write(
        sandbox.join("home/credentials"),
        home.archive_for(&Sandbox(owner("ann"))).unwrap(),
    )
    .unwrap();
    // From here on it is ann's, and whoever finds it knows that. The name appears whole.
    fs::write(sandbox.join("label.new"), ticket.to_string()).unwrap();
    fs::rename(sandbox.join("label.new"), sandbox.join("label")).unwrap();
    say("claimed");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "changed" => {
                ticket = homes.put(&ann, &claude, ticket, &pack(&sandbox)).unwrap().ticket;
                say("stored");
            }
            _ => break,
        }
    }
    homes.put(&ann, &claude, ticket, &pack(&sandbox)).unwrap();
    fs::remove_dir_all(&sandbox).unwrap();
    say("ended");
}

struct Node {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "issuer::node_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("HOMES_TEST_NODE", directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            child,
            input,
            output: BufReader::new(output),
        }
    }

    /// Whether it says this; it does not when it is dead before.
    fn says(&mut self, expected: &str) -> bool {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap_or(0) > 0 {
            if line.trim() == expected {
                return true;
            }
            assert!(!line.contains("panicked"), "{line}");
            line.clear();
        }
        false
    }

    fn tell(&mut self, line: &str) {
        // It may be dead by now.
        let _ = writeln!(self.input, "{line}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Where in a run the node is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kill {
    WhileStarting,
    BeforeTheRefresh,
    AfterTheRefresh,
    WhileTakingBack,
    AfterTakingBack,
    WhileEnding,
    Never,
}

const KILLS: [Kill; 7] = [
    Kill::WhileStarting,
    Kill::BeforeTheRefresh,
    Kill::AfterTheRefresh,
    Kill::WhileTakingBack,
    Kill::AfterTakingBack,
    Kill::WhileEnding,
    Kill::Never,
];

/// One run, killed at `kill`; whether the CLI ran.
fn run(directory: &Path, issuer: SocketAddr, kill: Kill, wait: Duration) -> bool {
    let mut node = Node::start(directory);
    if kill == Kill::WhileStarting {
        thread::sleep(wait);
        node.kill();
        return false;
    }
    assert!(node.says("claimed"), "the node died by itself");
    if kill == Kill::BeforeTheRefresh {
        node.kill();
        return false;
    }
    let sandbox = directory.join("sandbox");
    cli(&sandbox, issuer).unwrap_or_else(|error| panic!("{kill:?}: {error}"));
    if kill == Kill::AfterTheRefresh {
        node.kill();
        return true;
    }
    node.tell("changed");
    if kill == Kill::WhileTakingBack {
        thread::sleep(wait / 8);
        node.kill();
        return true;
    }
    assert!(node.says("stored"));
    if kill == Kill::AfterTakingBack {
        node.kill();
        return true;
    }
    node.tell("end");
    if kill == Kill::WhileEnding {
        thread::sleep(wait / 8);
        node.kill();
        return true;
    }
    assert!(node.says("ended") && node.child.wait().unwrap().success());
    true
}

#[test]
fn the_issuer_never_sees_a_used_token_again() {
    let disk = Disk::in_memory();
    let homes = homes_in(disk.0.path());
    let (ann, claude) = (owner("ann"), agent("claude"));
    let ticket: Ticket = homes.open(&ann, &claude).unwrap().ticket;
    let mut login = PlainHome::new();
    login.extend(b"login").unwrap();
    homes.put(&ann, &claude, ticket, &login).unwrap();
    drop(homes);

    let issuer = Issuer::start();
    let mut random = Random(0x5eed_1234_abcd_0001);
    let mut kills: HashMap<Kill, usize> = HashMap::new();
    let mut refreshed = 0;
    for _ in 0..RUNS {
        let kill = KILLS[usize::try_from(random.below(KILLS.len() as u64)).unwrap()];
        *kills.entry(kill).or_default() += 1;
        let wait = Duration::from_micros(random.below(8000));
        refreshed += usize::from(run(disk.0.path(), issuer.address, kill, wait));
        assert_eq!(issuer.tokens.lock().unwrap().thefts, 0, "after a kill {kill:?}");
    }
    // One more that lives, to bring home what the last one left.
    refreshed += usize::from(run(disk.0.path(), issuer.address, Kill::Never, Duration::ZERO));
    let tokens = issuer.tokens.lock().unwrap();
    assert_eq!((tokens.thefts, tokens.issued), (0, refreshed));
    let opened = homes_in(disk.0.path()).open(&ann, &claude).unwrap();
    let stored = opened.home.unwrap();
    assert_eq!(
        stored.archive_for(&Sandbox(owner("ann"))).unwrap(),
        tokens.current.as_bytes()
    );
    assert!(KILLS.iter().all(|kill| kills[kill] > RUNS / 20), "{kills:?}");
    println!("{RUNS} runs, {refreshed} refreshes, 0 thefts, kills {kills:?}");
}
