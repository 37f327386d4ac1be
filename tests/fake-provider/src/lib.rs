//! A stand-in for the providers' model endpoints, for what the real ones cannot be had for: scripted answers, failures
//! at a chosen moment, and tests without anybody's login.
//!
//! It speaks what the agent CLIs speak, streamed: Anthropic's messages, OpenAI's responses and chat completions, and
//! Gemini's generateContent. It generates nothing: every answer is a [`Step`] that a test has put into the queue, or
//! the default one when the queue is empty. It checks no key; a test that wants a refusal scripts it.
//!
//! ```text
//! test ──FakeProvider::start──▶ thread with its own runtime ──accept──▶ one task per connection
//!      ──script(steps)───────▶ queue ──one step per model request──▶ answer
//!      ◀─seen()────────────── what was asked: dialect, model, conversation
//! ```
//!
//! Invariants: only a request that offers tools (what a CLI sends for a turn) takes a step; side requests (titles,
//! classifiers, token counts) get a short answer and leave the queue alone. Steps are taken in the order of requests.

mod answer;
mod dialect;
mod script;
mod server;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use tokio::sync::oneshot;

pub use dialect::{Dialect, Message, Seen};
pub use script::Step;

/// How many requests are remembered; the oldest are forgotten first.
const SEEN_MAX: usize = 4096;

/// What the connections of one provider share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    steps: VecDeque<Step>,
    default: Step,
    seen: VecDeque<Seen>,
    /// Numbers ids, so that two runs of a script give the same ones.
    answers: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Remembers a request and says how it is answered, with the number of the answer.
    pub(crate) fn next(&self, seen: Seen) -> (Step, u64) {
        let mut state = self.state();
        let step = if seen.tools.is_empty() {
            Step::text("A title")
        } else {
            state.steps.pop_front().unwrap_or_else(|| state.default.clone())
        };
        if state.seen.len() == SEEN_MAX {
            state.seen.pop_front();
        }
        state.seen.push_back(seen);
        state.answers += 1;
        (step, state.answers)
    }

    pub(crate) fn set(&self, steps: Vec<Step>) {
        let mut state = self.state();
        state.steps = steps.into();
        state.answers = 0;
    }
}

/// A provider that runs in a thread of its own. Dropping it ends every connection at once.
#[derive(Debug)]
pub struct FakeProvider {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeProvider {
    /// Listens on a free port of 127.0.0.1. `default` answers when no step is left.
    pub fn start(default: Step) -> io::Result<Self> {
        Self::start_at(0, default)
    }

    /// Listens on `port` of 127.0.0.1.
    pub fn start_at(port: u16, default: Step) -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, port).into(), default)
    }

    /// Listens on `address`: a CLI in a sandbox takes 127.0.0.1 for its own and asks no proxy for it.
    pub fn start_on(address: SocketAddr, default: Step) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                steps: VecDeque::new(),
                default,
                seen: VecDeque::new(),
                answers: 0,
            }),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("fake-provider".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        result = server::serve(listener, served) => {
                            if let Err(error) = result {
                                eprintln!("fake-provider: {error}");
                            }
                        }
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens, as a URL without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the steps that are left, and begins to number answers anew.
    pub fn script(&self, steps: impl IntoIterator<Item = Step>) {
        self.shared.set(steps.into_iter().collect());
    }

    /// How many steps nobody has asked for yet.
    pub fn steps_left(&self) -> usize {
        self.shared.state().steps.len()
    }

    /// What has been asked since the last call, oldest first.
    pub fn take_seen(&self) -> Vec<Seen> {
        self.shared.state().seen.drain(..).collect()
    }

    /// Waits until the provider ends, which it does only when another thread stops the process.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            // An error here is a panic of the thread, which has printed it already.
            let _ = thread.join();
        }
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The receiver is gone only when the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
