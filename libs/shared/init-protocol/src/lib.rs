//! What a node and `remuda-init` say to each other over one connection. Pure: bytes in, frames out.
//!
//! Owns: the frames, their limits, versions, and the counting of credit. Does not own: sockets, who may connect, and
//! what a frame makes somebody do.
//!
//! A frame is nine bytes of head and a payload:
//!
//! ```text
//! 0         4      5            9
//! │ length  │ kind │ channel    │ payload ...            numbers are big-endian; length counts the payload only
//! ```
//!
//! One mechanism carries everything that streams: a **channel** with a direction each way, opened by [`Open`]. The node
//! opens even ids, init odd ones, none is used twice in a connection, and frames for a channel that is gone are ignored.
//!
//! | opened | node → init | init → node | ends with |
//! |---|---|---|---|
//! | [`Open::Exec`] | standard input | standard output | [`Message::Exited`] |
//! | (its `stderr_channel`) | | standard error | |
//! | [`Open::Unpack`] | a tar archive | | [`Message::Done`] |
//! | [`Open::Pack`] | | a tar archive | [`Message::Done`] |
//! | [`Open::Watch`] | | [`Message::Changed`] | [`Message::Close`] |
//! | [`Open::Connection`], by init | bytes | bytes | both directions' [`Message::Eof`] |
//!
//! Invariants:
//! - Nobody sends more data in a direction than [`WINDOW_BYTES`] plus the credit received for it. So a reader that does
//!   not read costs a window, and stops its own stream only.
//! - A direction's last message is [`Message::Eof`]; a reader that wants no more says [`Message::Stop`].
//! - A payload is at most [`PAYLOAD_BYTES_MAX`]; a longer one, an unknown kind, or one that cannot be read ends the
//!   connection. Whatever bytes come, decoding holds at most one frame.
//!
//! ```text
//! init                                  node
//!  │── Hello{versions, sandbox, proof} ──▶│
//!  │◀── Welcome{version, return_key} ─────│   or Refuse, and the connection ends
//!  │◀── SetLabel, Open, Data, Ping ... ───│
//! ```

mod codec;
mod credit;
mod entrance;
mod message;
mod start;

pub use codec::{Decoder, FRAME_HEAD_BYTES, PAYLOAD_BYTES_MAX, ProtocolError, encode, encode_data};
pub use credit::{CreditError, Receiving, Sending, WINDOW_BYTES};
pub use entrance::{PROXY_ADDRESS, entrance_address, entrance_at};
pub use message::{
    ArchiveLimits, Done, Exec, Exit, Failure, FailureCode, Frame, Health, Hello, Message, Open, Pack, Proof,
    Unpack, Welcome,
};
pub use start::{NodeAddress, ProcessLimits, START_VARIABLE, Start};

/// The version that this crate speaks. Both sides of a connection use the same.
pub const VERSION: u32 = 1;

/// How many channels may be open at once in one connection.
pub const CHANNELS_MAX: usize = 512;

/// How many of them may be connections opened by what runs in the sandbox.
pub const CONNECTIONS_MAX: usize = 256;

/// The channel of messages that belong to none.
pub const NO_CHANNEL: u32 = 0;

/// How long an init that has lost its node tries to reach one again before it ends, in milliseconds.
pub const RETURN_TIMEOUT_MS: u64 = 45_000;

/// How long a label may be, in bytes.
pub const LABEL_BYTES_MAX: usize = 8 * 1024;

/// The newest version that a side which knows `own` and another which knows `other` share.
pub fn common_version(
    own: std::ops::RangeInclusive<u32>,
    other: std::ops::RangeInclusive<u32>,
) -> Option<u32> {
    let newest = *own.end().min(other.end());
    let oldest = *own.start().max(other.start());
    (oldest <= newest).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::common_version;

    #[test]
    fn two_sides_speak_the_newest_that_both_know() {
        assert_eq!(common_version(1..=3, 2..=5), Some(3));
        assert_eq!(common_version(4..=4, 2..=5), Some(4));
        assert_eq!(common_version(1..=1, 2..=5), None);
        assert_eq!(common_version(6..=7, 2..=5), None);
    }
}
