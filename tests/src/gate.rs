//! A gate on the way to a control plane: it can keep a registration, or its answer, for as long as a test wants.
//!
//! ```text
//! node ──request──▶ gate ──(kept here: the control plane has heard nothing)──▶ control plane
//!      ◀──answer──── │  ◀─(kept here: it knows the node, which does not know)─
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Where a registration is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Before the control plane hears of it.
    Request,
    /// After the control plane has answered, before the node hears of it.
    Answer,
}

/// One request's reading and answering may take this long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    keep: Option<Kept>,
    waiting: usize,
    passed: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The gate. It passes everything until it is told to keep registrations.
pub struct Gate {
    /// Where nodes find the control plane.
    pub url: String,
    shared: Arc<Shared>,
}

impl Gate {
    /// In front of the control plane at `url`, which may die and come back meanwhile.
    pub fn in_front_of(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let addr = listener.local_addr().expect("it is bound");
        let target: SocketAddr = url
            .trim_start_matches("http://")
            .parse()
            .expect("an address on loopback");
        let shared = Arc::new(Shared::default());
        let all = shared.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let shared = all.clone();
                std::thread::spawn(move || serve(near, target, &shared));
            }
        });
        Self {
            url: format!("http://{addr}"),
            shared,
        }
    }

    /// Keeps registrations there from now on.
    pub fn keep(&self, kept: Kept) {
        self.set(Some(kept));
    }

    /// Lets everything through, what was kept as well.
    pub fn open(&self) {
        self.set(None);
    }

    /// Waits until a registration is kept.
    pub fn wait_until_kept(&self) {
        self.wait("a registration at the gate", |state| state.waiting > 0);
    }

    /// Waits until nothing is kept any more.
    pub fn wait_until_passed(&self) {
        self.wait("what was kept to go on", |state| state.waiting == 0);
    }

    /// How many registrations have been answered.
    pub fn passed(&self) -> usize {
        self.shared.lock().passed
    }

    /// Waits until more than `count` registrations have been answered.
    pub fn wait_for_more_than(&self, count: usize) {
        self.wait("a registration to be answered", |state| state.passed > count);
    }

    fn set(&self, keep: Option<Kept>) {
        self.shared.lock().keep = keep;
        self.shared.changed.notify_all();
    }

    fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let guard = self.shared.lock();
        let (_guard, timeout) = self
            .shared
            .changed
            .wait_timeout_while(guard, PATIENCE, |state| !holds(state))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "{what}: not within {PATIENCE:?}");
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, kept: Kept) {
        let mut state = self.lock();
        if state.keep == Some(kept) {
            state.waiting += 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.keep == Some(kept))
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        self.changed.notify_all();
    }
}

/// One connection, request after request, each over a connection of its own to the control plane that runs then.
fn serve(mut near: TcpStream, target: SocketAddr, shared: &Shared) {
    while let Some(request) = read_message(&mut near) {
        let registers = request.starts_with(b"POST /v2/nodes/register ");
        if registers {
            shared.pass(Kept::Request);
        }
        let answer = TcpStream::connect(target).ok().and_then(|mut far| {
            far.write_all(&request).ok()?;
            read_message(&mut far)
        });
        // The control plane is not there or died over it: the node sees its connection end.
        let Some(answer) = answer else { return };
        if registers {
            shared.pass(Kept::Answer);
            shared.lock().passed += 1;
            shared.changed.notify_all();
        }
        if near.write_all(&answer).is_err() {
            return;
        }
    }
}

/// A head and as much body as it says; nothing when the connection ends before.
fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())
                .unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Some(bytes);
            }
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
    }
}
