//! Keys and tokens that cannot be printed by accident.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use subtle::ConstantTimeEq;

/// A key or a token. `Debug` and `Display` show `[secret]`, it cannot be serialised, and comparing takes the same time
/// wherever the difference is. Usable as the type of a setting.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Takes it as it is.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a header can carry it: visible ASCII characters and nothing else.
    pub fn fits_header(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Whether somebody's bytes are this secret, in constant time for a given length.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_nothing_and_compares() {
        let secret: Secret = "llorch-9f2c".parse().unwrap();
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "[secret] [secret] Some([secret])"
        );
        assert!(secret.matches(b"llorch-9f2c"));
        assert!(!secret.matches(b"llorch-9f2d"));
        assert!(!secret.matches(b""));
        assert_eq!(secret.expose(), "llorch-9f2c");
    }
}
