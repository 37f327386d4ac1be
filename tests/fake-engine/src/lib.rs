//! A stand-in for an engine, for what real engines cannot be had for: benchmarks, where the engine must cost next to
//! nothing, and failures, which a real engine does not have at the moment a test wants them.
//!
//! It speaks HTTP/1.1 on loopback and the part of OpenAI's wire format that Remuda needs. It generates nothing: an
//! answer is numbered words. It owns no policy: whoever asks says how the answer is to come, see [`Behaviour`].
//!
//! ```text
//! test ──FakeEngine::start──▶ thread with its own current-thread runtime ──accept──▶ one task per connection
//!      ◀─────stats()──────── atomics                                     ◀──stop──── closes every socket at once
//! ```
//!
//! Invariants: at most [`Settings::slots`] answers are given at a time, the others wait; every request that was begun
//! is counted in [`Stats`] as active, and later as completed, failed or cancelled, exactly once.

mod answer;
mod behaviour;
pub mod chunked;
mod connection;
mod request;
mod stats;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, oneshot};

pub use behaviour::{Behaviour, Failure};
pub use stats::Stats;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 16_384;

/// What one engine is like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Port on loopback; 0 takes a free one.
    pub port: u16,
    /// How many answers may be given at a time; more wait.
    pub slots: u32,
    /// The name of the one model.
    pub model: String,
    /// How answers come when the request says nothing else.
    pub behaviour: Behaviour,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: 0,
            slots: 4,
            model: "fake".to_owned(),
            behaviour: Behaviour::default(),
        }
    }
}

/// What the connections of one engine share.
#[derive(Debug)]
struct Shared {
    slots: u32,
    model: String,
    free: Semaphore,
    behaviour: Mutex<Behaviour>,
    counters: stats::Counters,
    answer: Box<[u8]>,
}

/// An engine that runs in a thread of its own. Dropping it is like `kill -9`: every connection ends at once.
#[derive(Debug)]
pub struct FakeEngine {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeEngine {
    /// Binds and starts.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // A socket listens inside its runtime, and a runtime may not be entered from a test's own.
        let socket = bind(settings.port)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            slots: settings.slots,
            free: Semaphore::new(settings.slots as usize),
            answer: answer::whole(&settings.model, None).into_boxed_slice(),
            model: settings.model,
            behaviour: Mutex::new(settings.behaviour),
            counters: stats::Counters::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let (listening, is_listening) = std::sync::mpsc::sync_channel(1);
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("fake-engine".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let listener = match socket.listen(BACKLOG) {
                        Ok(listener) => {
                            let _ = listening.send(Ok(()));
                            listener
                        }
                        Err(error) => {
                            let _ = listening.send(Err(error));
                            return;
                        }
                    };
                    tokio::select! {
                        () = accept(listener, served) => {}
                        _ = stopped => {}
                    }
                });
                // A runtime that is dropped drops its tasks, and they their sockets.
                drop(runtime);
            })?;
        is_listening
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the engine's thread has ended")))?;
        Ok(Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a URL without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.read()
    }

    /// Changes how answers come from now on when the request says nothing else.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        *self
            .shared
            .behaviour
            .lock()
            .expect("nothing panics while it holds this lock") = behaviour;
    }

    /// Waits until the engine ends, which it does only when another thread stops the process.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            // An error here is a panic of the engine's thread, which has printed it already.
            let _ = thread.join();
        }
    }

    /// Ends every connection at once and gives the port back.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for FakeEngine {
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

impl Shared {
    fn behaviour(&self) -> Behaviour {
        *self
            .behaviour
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}

fn bind(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it the kernel holds small chunks back; a socket that refuses it is only slower.
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection::serve(stream, Arc::clone(&shared)));
            }
            // Out of file descriptors: those that end give some back.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}
