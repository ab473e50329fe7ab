//! The budget region: what an execution may use, and what it has used.

use schemas::chat::Usage;
use schemas::decision::BudgetExceeded;
use schemas::fact::Limits;
use schemas::wire::Nanos;

/// Limits and what was spent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    limits: Option<Limits>,
    /// Inferences asked for.
    pub iterations: u32,
    /// Tool calls asked for.
    pub tool_calls: u32,
    /// Tokens used.
    pub usage: Usage,
}

impl Budget {
    pub(super) const fn new(limits: Limits) -> Self {
        Self { limits: Some(limits), iterations: 0, tool_calls: 0, usage: Usage::new(0, 0) }
    }

    pub(super) const fn spend(&mut self, usage: Usage) {
        self.usage = self.usage.plus(usage);
    }

    /// The moment at which the execution ends whatever happens.
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        self.limits.map_or(Nanos::MAX, |l| l.deadline)
    }

    /// Tokens left.
    #[must_use]
    pub fn tokens_left(&self) -> u64 {
        self.limits.map_or(0, |l| l.tokens.saturating_sub(self.usage.tokens))
    }

    /// Tool calls left.
    #[must_use]
    pub fn tool_calls_left(&self) -> u32 {
        self.limits.map_or(0, |l| l.tool_calls.saturating_sub(self.tool_calls))
    }

    /// The limit that another inference would break, if any.
    pub(super) fn exceeded(&self) -> Option<BudgetExceeded> {
        let limits = self.limits?;
        let exceeded = |dimension: &str, limit: u64, used: u64| {
            (used >= limit).then(|| BudgetExceeded { dimension: dimension.to_owned(), limit, used })
        };
        exceeded("iterations", limits.iterations.into(), self.iterations.into())
            .or_else(|| exceeded("tokens", limits.tokens, self.usage.tokens))
    }
}
