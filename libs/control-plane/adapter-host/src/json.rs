//! A JSON scanner that checks a text once and tells where its parts are.
//!
//! A JSON library that builds values costs more than the rest of a request together, and one that skips them does not
//! say where they were. This one walks, checks and gives offsets; it never allocates unless a key has an escape.
//!
//! It takes exactly the texts that `serde_json` takes as a value (RFC 8259, nesting up to [`DEPTH_MAX`], no lone
//! surrogates, no number beyond a double), because an engine answers the rest with a failure of its own. A property
//! test holds the two against each other.

use std::borrow::Cow;

/// How deep objects and arrays may nest.
pub(crate) const DEPTH_MAX: usize = 127;

/// Numbers with more characters than this are parsed to see whether a double can hold them.
const NUMBER_LEN_PLAIN_MAX: usize = 300;

/// Why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub(crate) struct JsonError {
    /// What is wrong.
    pub(crate) what: &'static str,
    /// Where.
    pub(crate) at: usize,
}

/// A place in a text, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first byte.
    pub(crate) start: u32,
    /// One past the last byte.
    pub(crate) end: u32,
}

impl Span {
    /// The span as a range of indices.
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A string as it stands in the text, quotes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawText<'a> {
    quoted: &'a str,
    escaped: bool,
}

impl<'a> RawText<'a> {
    /// The string's meaning; a copy only when it has escapes.
    pub(crate) fn decode(self) -> Cow<'a, str> {
        if self.escaped {
            // The scanner has checked every escape, so the other reader finds nothing to refuse.
            Cow::Owned(serde_json::from_str(self.quoted).unwrap_or_default())
        } else {
            Cow::Borrowed(self.inner())
        }
    }

    /// What stands between the quotes, escapes as they are.
    pub(crate) fn inner(self) -> &'a str {
        &self.quoted[1..self.quoted.len() - 1]
    }
}

/// What a value is, seen from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

/// Is told of the strings inside a value that is skipped.
pub(crate) trait Leaves {
    /// A string value, as it stands between its quotes.
    fn string(&mut self, inner: &str);

    /// Whether the strings below the member `key` are wanted.
    fn wants(&mut self, key: &str) -> bool {
        let _ = key;
        true
    }
}

/// Wants nothing.
impl Leaves for () {
    fn string(&mut self, _inner: &str) {}
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The first special byte among the eight in `word`, the lowest being the first.
///
/// The well-known tests for "a byte is zero" and "a byte is less than n" set the top bit of every byte that is; a borrow
/// can set it wrongly only above one that is, so the lowest one is always right.
fn first_special(word: u64) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([0x01; 8]);
    const TOPS: u64 = u64::from_le_bytes([0x80; 8]);
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = is_zero(word ^ (ONES * u64::from(b'"')));
    let backslash = is_zero(word ^ (ONES * u64::from(b'\\')));
    let found = (control | quote | backslash) & TOPS;
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// Walks over one JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    /// A scanner at the beginning of `text`.
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
        }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, JsonError> {
        Err(JsonError { what, at: self.at })
    }

    /// Where the scanner is, in bytes.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The span from `start` to here. A text is never longer than a span can say: bodies are bounded far below 4 GiB.
    pub(crate) fn span_from(&self, start: usize) -> Span {
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Span {
            start: offset(start),
            end: offset(self.at),
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes to the next byte that is no white space and gives it.
    pub(crate) fn next_byte(&mut self) -> Option<u8> {
        loop {
            let byte = self.byte()?;
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// What the next value is; nothing is taken.
    pub(crate) fn kind(&mut self) -> Result<Kind, JsonError> {
        match self.next_byte() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(_) => self.fail("expected a value"),
            None => self.fail("the text ends where a value should be"),
        }
    }

    /// Checks that nothing but white space is left.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        match self.next_byte() {
            None => Ok(()),
            Some(_) => self.fail("something follows the value"),
        }
    }

    /// Takes an object; `member` is called after each key and must take the value.
    pub(crate) fn object<E: From<JsonError>>(
        &mut self,
        mut member: impl FnMut(&mut Self, RawText<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open(b'{')?;
        if self.next_byte() == Some(b'}') {
            return self.close();
        }
        loop {
            if self.next_byte() != Some(b'"') {
                return Ok(self.fail("expected a key in quotes")?);
            }
            let key = self.string()?;
            if self.next_byte() != Some(b':') {
                return Ok(self.fail("expected ':' after the key")?);
            }
            self.at += 1;
            member(self, key)?;
            match self.next_byte() {
                Some(b',') => self.at += 1,
                Some(b'}') => return self.close(),
                _ => return Ok(self.fail("expected ',' or '}'")?),
            }
        }
    }

    /// Takes an array; `element` is called before each element, with its index, and must take it.
    pub(crate) fn array<E: From<JsonError>>(
        &mut self,
        mut element: impl FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open(b'[')?;
        if self.next_byte() == Some(b']') {
            return self.close();
        }
        for index in 0.. {
            element(self, index)?;
            match self.next_byte() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Ok(self.fail("expected ',' or ']'")?),
            }
        }
        self.close()
    }

    fn open(&mut self, bracket: u8) -> Result<(), JsonError> {
        if self.next_byte() != Some(bracket) {
            return self.fail(if bracket == b'{' {
                "expected an object"
            } else {
                "expected an array"
            });
        }
        if self.depth == DEPTH_MAX {
            return self.fail("nested too deep");
        }
        self.at += 1;
        self.depth += 1;
        Ok(())
    }

    fn close<E>(&mut self) -> Result<(), E> {
        self.at += 1;
        self.depth -= 1;
        Ok(())
    }

    /// Takes a value of any kind and gives its place.
    pub(crate) fn skip(&mut self, leaves: &mut impl Leaves) -> Result<Span, JsonError> {
        let kind = self.kind()?;
        let start = self.at;
        match kind {
            Kind::Object => self.object(|scanner, key| {
                let wanted = leaves.wants(&key.decode());
                if wanted {
                    scanner.skip(leaves)
                } else {
                    scanner.skip(&mut ())
                }
                .map(|_| ())
            })?,
            Kind::Array => self.array(|scanner, _| scanner.skip(leaves).map(|_| ()))?,
            Kind::String => {
                let text = self.string()?;
                leaves.string(text.inner());
            }
            Kind::Number => {
                self.number()?;
            }
            Kind::Bool => {
                self.boolean()?;
            }
            Kind::Null => self.literal("null")?,
        }
        Ok(self.span_from(start))
    }

    /// Takes a value of any kind and gives its text.
    pub(crate) fn raw(&mut self) -> Result<&'a str, JsonError> {
        self.kind()?;
        let start = self.at;
        self.skip(&mut ())?;
        Ok(&self.text[start..self.at])
    }

    /// Takes `true` or `false`.
    pub(crate) fn boolean(&mut self) -> Result<bool, JsonError> {
        let truth = self.next_byte() == Some(b't');
        self.literal(if truth { "true" } else { "false" })?;
        Ok(truth)
    }

    /// Takes a literal.
    pub(crate) fn literal(&mut self, literal: &'static str) -> Result<(), JsonError> {
        if !self.text.as_bytes()[self.at..].starts_with(literal.as_bytes()) {
            return self.fail("expected a value");
        }
        self.at += literal.len();
        Ok(())
    }

    /// Takes a number and gives its text.
    pub(crate) fn number(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return self.fail("expected a digit"),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let exponent = matches!(self.byte(), Some(b'e' | b'E'));
        if exponent {
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let number = &self.text[start..self.at];
        if (exponent || number.len() > NUMBER_LEN_PLAIN_MAX)
            && !number.parse::<f64>().is_ok_and(f64::is_finite)
        {
            return self.fail("a number that no double can hold");
        }
        Ok(number)
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            self.fail("expected a digit")
        } else {
            Ok(())
        }
    }

    /// Takes a string; the scanner must stand before its quote.
    pub(crate) fn string(&mut self) -> Result<RawText<'a>, JsonError> {
        let start = self.at;
        let mut escaped = false;
        self.at += 1;
        loop {
            self.skip_plain();
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(RawText {
                        quoted: &self.text[start..self.at],
                        escaped,
                    });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.fail("a control character in a string"),
                None => return self.fail("the text ends in a string"),
            }
        }
    }

    /// Goes to the next byte of a string that is not plain: a quote, a backslash or a control character.
    fn skip_plain(&mut self) {
        const WORD_LEN: usize = 8;
        /// So many words before blocks: keys, short values and what stands between escapes are over by then.
        const WORDS_FIRST: usize = 4;
        const BLOCK_LEN: usize = 32;
        let bytes = self.text.as_bytes();
        'words: loop {
            for _ in 0..WORDS_FIRST {
                let Some(word) = bytes
                    .get(self.at..)
                    .and_then(|rest| rest.first_chunk::<WORD_LEN>())
                else {
                    break 'words;
                };
                if let Some(at) = first_special(u64::from_le_bytes(*word)) {
                    self.at += at;
                    return;
                }
                self.at += WORD_LEN;
            }
            // No early exit within a block: so the compiler checks a block in a few vector instructions.
            while let Some(block) = bytes.get(self.at..self.at + BLOCK_LEN) {
                if block.iter().fold(false, |found, &byte| found | is_special(byte)) {
                    break;
                }
                self.at += BLOCK_LEN;
            }
        }
        while bytes.get(self.at).is_some_and(|&byte| !is_special(byte)) {
            self.at += 1;
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.byte() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => match self.hex()? {
                0xD800..=0xDBFF => {
                    let low_follows = self.text.as_bytes()[self.at..].starts_with(b"\\u");
                    if !low_follows {
                        return self.fail("half of a surrogate pair");
                    }
                    self.at += 1;
                    match self.hex()? {
                        0xDC00..=0xDFFF => Ok(()),
                        _ => self.fail("half of a surrogate pair"),
                    }
                }
                0xDC00..=0xDFFF => self.fail("half of a surrogate pair"),
                _ => Ok(()),
            },
            _ => self.fail("an escape that JSON does not have"),
        }
    }

    /// Takes `uXXXX`.
    fn hex(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.as_bytes().get(self.at + 1..self.at + 5);
        let Some(value) = digits.and_then(|digits| {
            digits.iter().try_fold(0, |value, &digit| {
                Some(value * 16 + char::from(digit).to_digit(16)?)
            })
        }) else {
            return self.fail("expected four hexadecimal digits");
        };
        self.at += 5;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(text: &str) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.skip(&mut ()).and_then(|_| scanner.end()).is_ok()
    }

    fn check(text: &str) {
        let expect = serde_json::from_str::<serde_json::Value>(text);
        assert_eq!(accepts(text), expect.is_ok(), "{text:?}: {expect:?}");
    }

    #[test]
    fn takes_what_serde_json_takes() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for text in [
            "",
            " ",
            "null",
            "nul",
            "nulll",
            "true",
            "false",
            "tru",
            "fals",
            "0",
            "-0",
            "-",
            "01",
            "1.",
            ".5",
            "1.5e",
            "1e5",
            "1E+5",
            "1e999",
            "-1e-999",
            "1.5E-3x",
            "\"\"",
            "\"",
            "\"a\\\"",
            "\"\\u00e9\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "\"\\ude00\"",
            "\"\\ud83d\\u0041\"",
            "\"\\ud83dx\"",
            "\"\\u12g4\"",
            "\"\\u12",
            "\"\\x\"",
            "\"\u{1}\"",
            "\"\u{7f}\"",
            "[]",
            "[1,]",
            "[,]",
            "[1 2]",
            "[1",
            "{}",
            "{\"a\":1}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":}",
            "{\"a\":1 \"b\":2}",
            "{",
            "[{]}",
            "1 2",
            "{} x",
            "\u{feff}{}",
            "\t\r\n {}",
            "\u{b}1",
            "\"ä\u{1f600}\"",
            &nested(127),
            &nested(128),
            &"9".repeat(310),
            &format!("0.{}", "1".repeat(400)),
        ] {
            check(text);
        }
    }

    #[test]
    fn finds_the_end_of_strings_of_every_length() {
        for len in 0..100 {
            for tail in ["\"", "\\n\"", "\\u0041\"", "\n\"", ""] {
                check(&format!("\"{}{tail}", "x".repeat(len)));
            }
        }
    }

    proptest! {
        #[test]
        fn the_first_special_byte_of_a_word_is_found(word: [u8; 8]) {
            let expect = word.iter().position(|&byte| is_special(byte));
            prop_assert_eq!(first_special(u64::from_le_bytes(word)), expect);
        }

        #[test]
        fn agrees_with_serde_json_on_near_json(
            text in proptest::collection::vec(
                prop_oneof![
                    Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\""), Just("\\"),
                    Just("u"), Just("d83d"), Just("de00"), Just("1"), Just("0"), Just("."), Just("e"), Just("-"),
                    Just("true"), Just("null"), Just(" "), Just("\n"), Just("a"), Just("ä"), Just("\"a\":"),
                ],
                0..24,
            )
        ) {
            check(&text.concat());
        }

        #[test]
        fn agrees_with_serde_json_on_any_text(text in "\\PC*") {
            check(&text);
            check(&serde_json::to_string(&text).unwrap());
        }
    }
}
