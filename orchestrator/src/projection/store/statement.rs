//! Statements whose length depends on what is written: text with numbered places, which both databases understand, and
//! the values for them. Texts of others become values, never words of a statement.

use std::fmt::Write;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Arguments, AssertSqlSafe};

/// A value of a column.
#[derive(Clone, Copy, Debug)]
pub(in crate::projection) enum Value<'a> {
    Text(Option<&'a str>),
    Whole(Option<i64>),
    Real(Option<f64>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Some(text))
    }
}

impl<'a> From<Option<&'a String>> for Value<'a> {
    fn from(text: Option<&'a String>) -> Self {
        Self::Text(text.map(String::as_str))
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Whole(Some(super::whole(number)))
    }
}

impl From<u32> for Value<'_> {
    fn from(number: u32) -> Self {
        Self::Whole(Some(i64::from(number)))
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Whole(Some(number))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(number: Option<i64>) -> Self {
        Self::Whole(number)
    }
}

impl From<Option<f64>> for Value<'_> {
    fn from(number: Option<f64>) -> Self {
        Self::Real(number)
    }
}

/// A statement in the making.
#[derive(Default)]
pub(in crate::projection) struct Statement {
    sql: String,
    arguments: AnyArguments,
}

impl Statement {
    pub(in crate::projection) fn new(sql: &'static str) -> Self {
        Self { sql: sql.to_owned(), arguments: AnyArguments::default() }
    }

    /// Words of our own.
    pub(in crate::projection) fn push(&mut self, sql: &'static str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    /// A value.
    pub(in crate::projection) fn value<'a>(&mut self, value: impl Into<Value<'a>>) -> &mut Self {
        let added = match value.into() {
            // PostgreSQL has no text with zeros in it.
            Value::Text(text) => self.arguments.add(text.map(|text| text.replace('\0', "\u{fffd}"))),
            Value::Whole(number) => self.arguments.add(number),
            Value::Real(number) => self.arguments.add(number),
        };
        added.expect("texts and numbers can always be encoded");
        write!(self.sql, "${}", self.arguments.len()).expect("a text can be written to");
        self
    }

    /// `(value, value, …)`
    pub(in crate::projection) fn row<'a>(&mut self, values: impl Iterator<Item = Value<'a>>) -> &mut Self {
        for (n, value) in values.enumerate() {
            self.sql.push_str(if n == 0 { "(" } else { ", " });
            self.value(value);
        }
        self.sql.push(')');
        self
    }

    /// The statement, not kept by the database for another time: the next one has another length.
    pub(in crate::projection) fn query(self) -> Query<'static, Any, AnyArguments> {
        // Safe: it was put together from words of this program and numbered places.
        sqlx::query_with(AssertSqlSafe(self.sql), self.arguments).persistent(false)
    }
}
