//! A set of dialects in one byte.

use pool_registry_types::Dialect;

/// Some dialects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DialectSet(u8);

impl DialectSet {
    /// No dialect at all.
    pub const EMPTY: Self = Self(0);

    const ALL: [Dialect; 7] = [
        Dialect::ChatCompletions,
        Dialect::Completions,
        Dialect::Embeddings,
        Dialect::Rerank,
        Dialect::Responses,
        Dialect::Messages,
        Dialect::CountTokens,
    ];

    const fn bit(dialect: Dialect) -> u8 {
        match dialect {
            Dialect::ChatCompletions => 1,
            Dialect::Completions => 1 << 1,
            Dialect::Embeddings => 1 << 2,
            Dialect::Rerank => 1 << 3,
            Dialect::Responses => 1 << 4,
            Dialect::Messages => 1 << 5,
            Dialect::CountTokens => 1 << 6,
        }
    }

    /// The set with `dialect` added.
    #[must_use]
    pub const fn with(self, dialect: Dialect) -> Self {
        Self(self.0 | Self::bit(dialect))
    }

    /// Whether `dialect` is in the set.
    pub const fn contains(self, dialect: Dialect) -> bool {
        self.0 & Self::bit(dialect) != 0
    }

    /// Whether no dialect is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether both sets have a dialect in common.
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the set has the dialect that stands at `place` in the fixed order, 0 to 6.
    pub(crate) const fn has_place(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    /// The dialects, in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = Dialect> {
        Self::ALL
            .into_iter()
            .filter(move |dialect| self.contains(*dialect))
    }
}

impl From<Dialect> for DialectSet {
    fn from(dialect: Dialect) -> Self {
        Self::EMPTY.with(dialect)
    }
}

impl FromIterator<Dialect> for DialectSet {
    fn from_iter<I: IntoIterator<Item = Dialect>>(dialects: I) -> Self {
        dialects.into_iter().fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_has_its_own_place() {
        for dialect in DialectSet::ALL {
            let one = DialectSet::from(dialect);
            assert_eq!(one.iter().collect::<Vec<_>>(), [dialect]);
            let rest: DialectSet = DialectSet::ALL
                .into_iter()
                .filter(|other| *other != dialect)
                .collect();
            assert!(!rest.contains(dialect) && !rest.meets(one));
            assert!(rest.with(dialect).meets(one));
        }
        assert!(DialectSet::EMPTY.is_empty() && !DialectSet::EMPTY.meets(DialectSet::EMPTY));
    }
}
