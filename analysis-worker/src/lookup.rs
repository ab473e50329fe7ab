//! Tables that are only looked up: everything that is listed or printed keeps an order of its own.

#![expect(clippy::disallowed_types, reason = "hot lookups by name and by path; no table of this kind is iterated")]

/// A table without an order.
pub(crate) type Lookup<K, V> = std::collections::HashMap<K, V>;
