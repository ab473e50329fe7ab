//! Tables that are only looked up: everything that is listed or printed keeps an order of its own.

#![expect(
    clippy::disallowed_types,
    reason = "hot lookups by name, path and number; where one is iterated, what comes out is sorted"
)]

/// A table without an order.
pub(crate) type Lookup<K, V> = std::collections::HashMap<K, V>;
