//! Why a tool call gave no result, in a sentence that a model can act on.

use schemas::fact::FailureClass;

/// A tool call that failed. The text says what was wrong and, where there is one, what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// What kind of failure; says whether another attempt makes sense.
    pub class: FailureClass,
    /// For the model and for people.
    pub detail: String,
}

impl Failure {
    /// The request itself is wrong.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::BadRequest, detail)
    }

    /// No such tool.
    pub fn unknown(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Unknown, detail)
    }

    /// A rule forbids it.
    pub fn refused(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Refused, detail)
    }

    /// It took too long.
    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Timeout, detail)
    }

    /// Nothing was begun, and another attempt may go better.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Overloaded, detail)
    }

    /// An accident in the worker.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Internal, detail)
    }

    /// What a model reads in place of a result.
    #[must_use]
    pub fn as_result(&self) -> String {
        format!("error: {}", self.detail)
    }

    fn new(class: FailureClass, detail: impl Into<String>) -> Self {
        Self { class, detail: detail.into() }
    }
}
