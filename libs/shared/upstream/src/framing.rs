//! Where a body ends: by length, by chunks (RFC 9112, section 7.1), or with the connection. No I/O.

use bytes::Bytes;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Whatever comes before the connection ends.
    UntilClose,
}

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// In a chunk's size, with what was read of it.
    Size { value: u64, digits: u32 },
    /// Behind a size, before its line's end.
    Extension { value: u64, length: u32 },
    /// In a chunk.
    Data { left: u64 },
    /// Behind a chunk, before its line's end.
    DataEnd,
    /// Behind the last chunk, in a line of the trailer.
    Trailer { is_empty: bool, length: u32 },
    /// Behind everything.
    End,
}

/// The body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FramingError;

/// Extensions and trailers are skipped, but not for ever.
const SKIPPED_LEN_MAX: u32 = 16 * 1024;
/// So many hexadecimal digits always fit into 64 bits.
const SIZE_DIGITS_MAX: u32 = 15;

impl Framing {
    pub(crate) const fn chunked() -> Self {
        Self::Chunked(Chunks::Size { value: 0, digits: 0 })
    }

    /// Whether the body has ended. One that ends with the connection never has.
    pub(crate) fn is_end(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunks::End))
    }

    /// Takes the next piece of the body out of `bytes`, and the framing behind it as far as it is there. None: `bytes` is
    /// used up, or the body has ended.
    pub(crate) fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Option<&'b [u8]>, FramingError> {
        match self {
            Self::UntilClose => Ok(Some(std::mem::take(bytes)).filter(|data| !data.is_empty())),
            Self::Length(left) => Ok(take(left, bytes)),
            Self::Chunked(chunks) => {
                chunks.skip(bytes)?;
                let Chunks::Data { left } = chunks else {
                    return Ok(None);
                };
                let data = take(left, bytes);
                if *left == 0 {
                    *chunks = Chunks::DataEnd;
                    chunks.skip(bytes)?;
                }
                Ok(data)
            }
        }
    }
}

/// What one read brought of a body.
pub(crate) struct Piece {
    pub(crate) data: Bytes,
    /// What stands behind the data is no framing.
    pub(crate) is_broken: bool,
    /// Something stands behind the body.
    pub(crate) is_followed: bool,
}

impl Piece {
    /// Takes the body's bytes out of what was read. In most reads they are in one place, and copied once.
    pub(crate) fn of(framing: &mut Framing, read: &[u8]) -> Self {
        let mut left = read;
        let mut first: &[u8] = &[];
        let mut joined = Vec::new();
        let is_broken = loop {
            match framing.next(&mut left) {
                Ok(Some(data)) if first.is_empty() => first = data,
                Ok(Some(data)) => {
                    if joined.is_empty() {
                        joined.reserve_exact(read.len());
                        joined.extend_from_slice(first);
                    }
                    joined.extend_from_slice(data);
                }
                Ok(None) => break false,
                Err(FramingError) => break true,
            }
        };
        let data = if joined.is_empty() {
            Bytes::copy_from_slice(first)
        } else {
            joined.into()
        };
        Self {
            data,
            is_broken,
            is_followed: !left.is_empty(),
        }
    }
}

fn take<'b>(left: &mut u64, bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= length as u64;
    let (data, rest) = bytes.split_at(length);
    *bytes = rest;
    (length > 0).then_some(data)
}

impl Chunks {
    /// Reads framing until data begins, the body ends, or `bytes` does.
    fn skip(&mut self, bytes: &mut &[u8]) -> Result<(), FramingError> {
        while !matches!(self, Self::Data { .. } | Self::End)
            && let Some((first, rest)) = bytes.split_first()
        {
            *self = self.step(*first)?;
            *bytes = rest;
        }
        Ok(())
    }

    fn step(self, byte: u8) -> Result<Self, FramingError> {
        match (self, byte) {
            (Self::Size { value, digits }, _) => match char::from(byte).to_digit(16) {
                Some(digit) if digits < SIZE_DIGITS_MAX => Ok(Self::Size {
                    value: value * 16 + u64::from(digit),
                    digits: digits + 1,
                }),
                None if digits > 0 && matches!(byte, b'\r' | b';' | b' ' | b'\t') => {
                    Ok(Self::Extension { value, length: 0 })
                }
                None if digits > 0 && byte == b'\n' => Ok(Self::after_size(value)),
                _ => Err(FramingError),
            },
            (Self::Extension { value, .. }, b'\n') => Ok(Self::after_size(value)),
            (Self::Extension { value, length }, _) if length < SKIPPED_LEN_MAX => Ok(Self::Extension {
                value,
                length: length + 1,
            }),
            (Self::DataEnd, b'\r') => Ok(Self::DataEnd),
            (Self::DataEnd, b'\n') => Ok(Self::Size { value: 0, digits: 0 }),
            (Self::Trailer { is_empty: true, .. }, b'\n') => Ok(Self::End),
            (Self::Trailer { is_empty, length }, b'\r') => Ok(Self::Trailer { is_empty, length }),
            (Self::Trailer { length, .. }, b'\n') => Ok(Self::Trailer {
                is_empty: true,
                length,
            }),
            (Self::Trailer { length, .. }, _) if length < SKIPPED_LEN_MAX => Ok(Self::Trailer {
                is_empty: false,
                length: length + 1,
            }),
            (
                Self::Extension { .. } | Self::Trailer { .. } | Self::DataEnd | Self::Data { .. } | Self::End,
                _,
            ) => Err(FramingError),
        }
    }

    fn after_size(value: u64) -> Self {
        if value == 0 {
            Self::Trailer {
                is_empty: true,
                length: 0,
            }
        } else {
            Self::Data { left: value }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces joined, what is left behind the body, and whether it has ended.
    type Read = (Vec<u8>, Vec<u8>, bool);

    fn read(mut framing: Framing, wire: &[u8], size: usize) -> Result<Read, FramingError> {
        let (mut body, mut left) = (Vec::new(), Vec::new());
        for piece in wire.chunks(size) {
            let mut bytes = piece;
            while let Some(data) = framing.next(&mut bytes)? {
                assert!(!data.is_empty());
                body.extend_from_slice(data);
            }
            left.extend_from_slice(bytes);
        }
        Ok((body, left, framing.is_end()))
    }

    fn check(framing: Framing, wire: &[u8], expect: Result<(&[u8], &[u8], bool), FramingError>) {
        let expect = expect.map(|(body, left, is_end)| (body.to_vec(), left.to_vec(), is_end));
        // However the bytes are cut, the result is the same.
        for size in 1..=wire.len() {
            assert_eq!(read(framing, wire, size), expect, "in pieces of {size}");
        }
    }

    #[test]
    fn bodies_by_length() {
        check(Framing::Length(3), b"abc", Ok((b"abc", b"", true)));
        check(Framing::Length(3), b"ab", Ok((b"ab", b"", false)));
        check(Framing::Length(3), b"abcHTTP", Ok((b"abc", b"HTTP", true)));
        check(Framing::UntilClose, b"abc", Ok((b"abc", b"", false)));
    }

    #[test]
    fn bodies_by_chunks() {
        let chunked = Framing::chunked();
        check(chunked, b"3\r\nabc\r\n0\r\n\r\n", Ok((b"abc", b"", true)));
        check(
            chunked,
            b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
            Ok((b"abc0123456789", b"", true)),
        );
        check(chunked, b"3\r\nabc\r\n0\r\n\r\nHTTP", Ok((b"abc", b"HTTP", true)));
        check(chunked, b"3\r\nabc\r\n0\r\n", Ok((b"abc", b"", false)));
        check(chunked, b"3\r\nabcd\r\n", Err(FramingError));
        check(chunked, b"-3\r\nabc\r\n", Err(FramingError));
        check(chunked, b"\r\nabc\r\n", Err(FramingError));
        check(chunked, b"1000000000000000\r\n", Err(FramingError));
    }

    #[test]
    fn the_end_is_known_with_the_last_piece() {
        let mut framing = Framing::chunked();
        let mut bytes: &[u8] = b"3\r\nabc\r\n0\r\n\r\n";
        assert_eq!(framing.next(&mut bytes), Ok(Some(b"abc".as_slice())));
        assert!(framing.is_end());
    }

    #[test]
    fn trailers_and_extensions_are_bounded() {
        let endless = [b"0\r\n".to_vec(), vec![b'x'; 64 * 1024]].concat();
        assert_eq!(read(Framing::chunked(), &endless, 1024), Err(FramingError));
        let endless = [b"3;".to_vec(), vec![b'x'; 64 * 1024]].concat();
        assert_eq!(read(Framing::chunked(), &endless, 1024), Err(FramingError));
    }
}
