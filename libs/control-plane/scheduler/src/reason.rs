//! Why a task was placed where it was: small values on the way of a task, words only when somebody reads them.

use std::fmt;

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The replica served this session before.
    SessionWarm,
    /// The replica's node has what the owner's earlier tasks have left: a sandbox, a login.
    OwnerWarm,
    /// The replica served a prompt with the same beginning before.
    PrefixWarm {
        /// Which of the prefixes that were given, 0 being the longest.
        prefix: u8,
    },
    /// A replica was warm and left aside, because it had no room or was busier than the least busy one by more than
    /// the margin.
    WarmTooBusy,
    /// The pool was asked for.
    Pinned,
    /// The pool was preferred.
    Preferred,
    /// The preferred pools had no room.
    PreferredFull,
    /// The replica is the only one that could take the task.
    OnlyOne,
    /// The replica has the largest share of its slots free; ties go by free device memory, pool and replica.
    LeastBusy {
        /// Slots taken, in thousandths of all its slots, before this task.
        used_permille: u16,
    },
    /// The task waited, and this replica was the first to have room.
    FirstFree,
    /// The task starts over: this many starts came to nothing before.
    StartedOver {
        /// Earlier starts.
        before: u16,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionWarm => f.write_str("has this session warm"),
            Self::OwnerWarm => f.write_str("has this owner's sandbox"),
            Self::PrefixWarm { prefix: 0 } => {
                f.write_str("has the longest known beginning of this prompt warm")
            }
            Self::PrefixWarm { prefix } => {
                write!(
                    f,
                    "has a beginning of this prompt warm ({prefix} longer ones are not known)"
                )
            }
            Self::WarmTooBusy => f.write_str("the warm replica was too busy"),
            Self::Pinned => f.write_str("the pool was asked for"),
            Self::Preferred => f.write_str("the pool was preferred"),
            Self::PreferredFull => f.write_str("the preferred pools had no room"),
            Self::OnlyOne => f.write_str("the only replica with room for it"),
            Self::LeastBusy { used_permille } => {
                write!(
                    f,
                    "least busy ({}.{} % of its slots taken)",
                    used_permille / 10,
                    used_permille % 10
                )
            }
            Self::FirstFree => f.write_str("the first to have room while it waited"),
            Self::StartedOver { before } => {
                write!(f, "started over after {before} starts that came to nothing")
            }
        }
    }
}

/// Up to four reasons, in the order in which they decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons([Option<Reason>; Self::MAX]);

impl Reasons {
    const MAX: usize = 4;

    /// Adds one; a fifth is dropped.
    pub(crate) fn push(&mut self, reason: Reason) {
        if let Some(place) = self.0.iter_mut().find(|place| place.is_none()) {
            *place = Some(reason);
        }
    }

    /// The reasons.
    pub fn iter(&self) -> impl Iterator<Item = Reason> {
        self.0.into_iter().flatten()
    }

    /// The reasons in words.
    pub fn to_strings(&self) -> Vec<String> {
        self.iter().map(|reason| reason.to_string()).collect()
    }
}
