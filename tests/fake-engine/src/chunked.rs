//! The chunked transfer coding of HTTP/1.1 (RFC 9112, section 7.1), one byte slice at a time.

/// A body that is no chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a chunked body")]
pub struct ChunkedError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the hexadecimal size, with how much of it is read.
    Size { value: u64, digits: u32 },
    /// Between size and line end: an extension.
    Extension { value: u64 },
    /// In a chunk, with how many bytes are left.
    Data { left: u64 },
    /// After a chunk's data, before its line end.
    DataEnd,
    /// After the last chunk: trailer lines, with whether the current one is empty so far.
    Trailer { empty: bool },
    /// All read.
    Done,
}

/// Takes the framing away from a body as it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Decoder(State);

impl Default for Decoder {
    fn default() -> Self {
        Self(State::Size { value: 0, digits: 0 })
    }
}

impl Decoder {
    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.0 == State::Done
    }

    /// Reads `input`, gives the body's bytes in it to `take`, and returns how many bytes of `input` belong to the body;
    /// fewer than all only when the body has ended.
    pub fn decode(&mut self, input: &[u8], mut take: impl FnMut(&[u8])) -> Result<usize, ChunkedError> {
        let mut at = 0;
        while at < input.len() && self.0 != State::Done {
            if let State::Data { left } = self.0 {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                take(&input[at..at + here]);
                at += here;
                let left = left - here as u64;
                self.0 = if left == 0 {
                    State::DataEnd
                } else {
                    State::Data { left }
                };
            } else {
                self.0 = step(self.0, input[at])?;
                at += 1;
            }
        }
        Ok(at)
    }
}

fn step(state: State, byte: u8) -> Result<State, ChunkedError> {
    let after_size = |value| {
        if value == 0 {
            State::Trailer { empty: true }
        } else {
            State::Data { left: value }
        }
    };
    match (state, byte) {
        (State::Size { digits: 0, .. }, b'\r' | b'\n' | b';') => Err(ChunkedError),
        (State::Size { value, .. }, b'\n') | (State::Extension { value }, b'\n') => Ok(after_size(value)),
        (State::Size { value, .. }, b'\r' | b';' | b' ') | (State::Extension { value }, _) => {
            Ok(State::Extension { value })
        }
        (State::Size { value, digits }, byte) => {
            let digit = char::from(byte).to_digit(16).ok_or(ChunkedError)?;
            // 15 digits always fit into 64 bits.
            if digits >= 15 {
                return Err(ChunkedError);
            }
            Ok(State::Size {
                value: value * 16 + u64::from(digit),
                digits: digits + 1,
            })
        }
        (State::DataEnd, b'\r') => Ok(State::DataEnd),
        (State::DataEnd, b'\n') => Ok(State::Size { value: 0, digits: 0 }),
        (State::Trailer { empty: true }, b'\n') => Ok(State::Done),
        (State::Trailer { empty }, b'\r') => Ok(State::Trailer { empty }),
        (State::Trailer { empty: false }, b'\n') => Ok(State::Trailer { empty: true }),
        (State::Trailer { .. }, _) => Ok(State::Trailer { empty: false }),
        (State::DataEnd | State::Data { .. } | State::Done, _) => Err(ChunkedError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wire: &[u8], expect: Result<(&[u8], usize), ChunkedError>) {
        // However the bytes are cut, the result is the same.
        for size in 1..=wire.len() {
            let mut decoder = Decoder::default();
            let mut body = Vec::new();
            let mut used = 0;
            let mut result = Ok(());
            for piece in wire.chunks(size) {
                match decoder.decode(piece, |bytes| body.extend_from_slice(bytes)) {
                    Ok(here) => used += here,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
                if decoder.is_done() {
                    break;
                }
            }
            let got = result.map(|()| (body.as_slice(), used));
            assert_eq!(got, expect, "in pieces of {size}");
        }
    }

    #[test]
    fn bodies_in_pieces() {
        check(b"3\r\nabc\r\n0\r\n\r\n", Ok((b"abc", 13)));
        check(
            b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
            Ok((b"abc0123456789", 38)),
        );
        check(b"3\r\nabc\r\n0\r\n\r\nHTTP", Ok((b"abc", 13)));
        check(b"3\r\nabcd", Err(ChunkedError));
        check(b"x\r\n", Err(ChunkedError));
        check(b"\r\n", Err(ChunkedError));
    }
}
