//! Archives, each on a thread of its own. To the main loop a job is one end of a pipe and, later, a result.

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use init_protocol::{Done, Failure, FailureCode};

/// Walking a tree needs little of it.
const STACK_BYTES: usize = 512 * 1024;

/// Work on a thread.
pub(crate) struct Job {
    result: mpsc::Receiver<Result<Done, Failure>>,
}

impl Job {
    /// Starts `work` with its end of a pipe; the main loop is woken when it is done.
    pub(crate) fn start<E: Send + 'static>(
        pipe_end: E,
        waker: UnixStream,
        work: impl FnOnce(E) -> Result<Done, Failure> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, result) = mpsc::sync_channel(1);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let done = work(pipe_end);
            let _ = sender.send(done);
            // Full means that the main loop is about to wake anyway.
            let _ = (&waker).write(&[0]);
        })?;
        Ok(Self { result })
    }

    /// The result, once there is one.
    pub(crate) fn result(&self) -> Option<Result<Done, Failure>> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(Failure::new(
                FailureCode::Failed,
                "the archive's thread has ended early",
            ))),
        }
    }
}

/// A pipe between the main loop and a job.
pub(crate) fn pipe() -> io::Result<(PipeReader, PipeWriter)> {
    io::pipe()
}
