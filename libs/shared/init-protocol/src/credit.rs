//! Credit: how much may be sent in one direction of a channel before the other side has taken it.

use thiserror::Error;

/// What may be sent in a direction of a new channel, in bytes. What was taken is given back as credit.
pub const WINDOW_BYTES: u32 = 128 * 1024;

/// The other side broke the rules of credit; the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CreditError {
    /// More data came than was allowed.
    #[error("more data came than credit was given")]
    Overrun,
    /// More credit came than there are bytes in a window.
    #[error("credit beyond the window")]
    Excess,
}

/// The sender's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sending {
    left_bytes: u32,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            left_bytes: WINDOW_BYTES,
        }
    }
}

impl Sending {
    /// How many bytes may be sent now.
    pub fn left_bytes(self) -> usize {
        self.left_bytes as usize
    }

    /// Counts `bytes` that are sent. The caller sends no more than [`Self::left_bytes`].
    pub fn spend(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        debug_assert!(bytes <= self.left_bytes, "sent beyond the credit");
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
    }

    /// Counts credit that came.
    ///
    /// # Errors
    /// [`CreditError::Excess`].
    pub fn earn(&mut self, bytes: u32) -> Result<(), CreditError> {
        let left = self.left_bytes.checked_add(bytes).ok_or(CreditError::Excess)?;
        if left > WINDOW_BYTES {
            return Err(CreditError::Excess);
        }
        self.left_bytes = left;
        Ok(())
    }
}

/// The receiver's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiving {
    allowed_bytes: u32,
    taken_bytes: u32,
}

impl Default for Receiving {
    fn default() -> Self {
        Self {
            allowed_bytes: WINDOW_BYTES,
            taken_bytes: 0,
        }
    }
}

impl Receiving {
    /// Counts data that came.
    ///
    /// # Errors
    /// [`CreditError::Overrun`].
    pub fn receive(&mut self, bytes: usize) -> Result<(), CreditError> {
        let bytes = u32::try_from(bytes).map_err(|_| CreditError::Overrun)?;
        self.allowed_bytes = self
            .allowed_bytes
            .checked_sub(bytes)
            .ok_or(CreditError::Overrun)?;
        Ok(())
    }

    /// Counts data that was taken out of the buffer. The credit to send now, if it is worth a frame: half a window, so
    /// that a sender never waits while its reader reads, and frames of credit are few.
    pub fn take(&mut self, bytes: usize) -> Option<u32> {
        self.taken_bytes = self
            .taken_bytes
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.taken_bytes < WINDOW_BYTES / 2 {
            return None;
        }
        let credit = std::mem::take(&mut self.taken_bytes);
        self.allowed_bytes = self.allowed_bytes.saturating_add(credit);
        Some(credit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sender_that_heeds_its_credit_is_never_refused_and_never_stuck(steps in prop::collection::vec((0_usize..200_000, 0_usize..200_000), 1..200)) {
            let (mut sending, mut receiving) = (Sending::default(), Receiving::default());
            let mut buffered = 0_usize;
            for (send, take) in steps {
                let send = send.min(sending.left_bytes());
                sending.spend(send);
                receiving.receive(send).unwrap();
                buffered += send;
                prop_assert!(buffered <= WINDOW_BYTES as usize);
                let take = take.min(buffered);
                buffered -= take;
                if let Some(credit) = receiving.take(take) {
                    sending.earn(credit).unwrap();
                }
                prop_assert!(buffered > 0 || sending.left_bytes() > 0);
            }
        }
    }

    #[test]
    fn too_much_is_refused() {
        let mut receiving = Receiving::default();
        receiving.receive(WINDOW_BYTES as usize).unwrap();
        assert_eq!(receiving.receive(1), Err(CreditError::Overrun));
        let mut sending = Sending::default();
        assert_eq!(sending.earn(1), Err(CreditError::Excess));
        assert_eq!(sending.earn(u32::MAX), Err(CreditError::Excess));
        sending.spend(10);
        assert_eq!(sending.earn(10), Ok(()));
    }
}
