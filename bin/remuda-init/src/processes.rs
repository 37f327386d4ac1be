//! All processes of the sandbox: told of their ends, reaped, ended at once.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use init_protocol::Exit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process_group, test_kill_process_group, wait};

/// How long the kernel may take to end killed processes.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long programs have to write what they hold before they are killed: a login that was just refreshed is lost
/// otherwise. Most end at once; this is for a machine that is busy.
const END_GRACE: Duration = Duration::from_secs(1);

/// Proof of being process 1, and the way in which it hears of its children's ends.
pub(crate) struct Processes {
    woken: UnixStream,
    wake: UnixStream,
}

impl Processes {
    /// None when this is not process 1.
    pub(crate) fn of_process_one() -> io::Result<Option<Self>> {
        if getpid() != Pid::INIT {
            return Ok(None);
        }
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(libc::SIGCHLD, wake.try_clone()?)?;
        Ok(Some(Self { woken, wake }))
    }

    /// What a thread writes to when it has something for the main loop.
    pub(crate) fn waker(&self) -> io::Result<UnixStream> {
        self.wake.try_clone()
    }

    /// Forgets that something has happened; to be called before looking what it was.
    pub(crate) fn clear(&self) {
        let mut buffer = [0_u8; 64];
        while matches!((&self.woken).read(&mut buffer), Ok(count) if count > 0) {}
    }

    /// The next process that has ended, which includes orphans that nobody else waits for.
    pub(crate) fn reap(&self) -> Option<(Pid, Exit)> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let exit = Exit {
                        code: status.exit_status(),
                        signal: status.terminating_signal(),
                    };
                    return Some((pid, exit));
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Asks every process but this one to end, and kills after a moment what has not. Answers whether none is left.
    pub(crate) fn end_all(&self) -> bool {
        // One that cannot be asked is killed like one that does not listen.
        let _ = kill_process_group(Pid::INIT, Signal::TERM);
        let all_gone = self.until_none_left(END_GRACE, test_kill_process_group, |_, _| {});
        all_gone || self.kill_all(|_, _| {})
    }

    /// Kills every process but this one and waits for their ends. What has ended is given to `ended`. Answers whether
    /// none is left.
    pub(crate) fn kill_all(&self, ended: impl FnMut(Pid, Exit)) -> bool {
        let kill = |group| kill_process_group(group, Signal::KILL);
        self.until_none_left(KILL_TIMEOUT, kill, ended)
    }

    /// Signals, and reaps what has ended, until nobody is there who could be signalled.
    fn until_none_left(
        &self,
        timeout: Duration,
        signal: impl Fn(Pid) -> rustix::io::Result<()>,
        mut ended: impl FnMut(Pid, Exit),
    ) -> bool {
        let end = Instant::now() + timeout;
        loop {
            // To "group 1" means to all that this process may signal, itself not among them. It is process 1 of its
            // own namespace (or this value would not exist), so that is the sandbox and nothing else.
            let none_left = signal(Pid::INIT) == Err(rustix::io::Errno::SRCH);
            while let Some((pid, exit)) = self.reap() {
                ended(pid, exit);
            }
            if none_left {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            let step = Timespec::try_from(Duration::from_millis(5)).ok();
            let _ = poll(&mut [PollFd::new(&self.woken, PollFlags::IN)], step.as_ref());
            self.clear();
        }
    }
}

impl AsFd for Processes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::Processes;

    #[test]
    fn only_process_one_may_end_all_others() {
        assert!(Processes::of_process_one().unwrap().is_none());
    }
}
