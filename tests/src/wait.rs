//! Bounded waits on conditions.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long a condition may take on a busy machine.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Duration);

impl Default for Deadline {
    fn default() -> Self {
        Self(Duration::from_secs(60))
    }
}

/// Waits until `look` gives something; panics with `what` when it does not come in time.
pub fn eventually<T>(what: &str, deadline: Deadline, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + deadline.0;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {:?}", deadline.0);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As [`eventually`], for a look that awaits.
pub async fn eventually_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    deadline: Deadline,
    mut look: impl FnMut() -> F,
) -> T {
    let until = Instant::now() + deadline.0;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {:?}", deadline.0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
