//! Child processes that never outlive their purpose: the one crate with unsafe code.
