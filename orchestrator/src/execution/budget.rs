//! The budget region: what an execution may use, what is set aside for effects under way, and what was used.

use schemas::chat::Usage;
use schemas::decision::BudgetExceeded;
use schemas::fact::Limits;
use schemas::wire::Nanos;
use serde::{Deserialize, Serialize};

use super::Transition;

/// Limits and what was spent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    limits: Option<Limits>,
    /// A limit was reached, and nothing has been granted since.
    exceeded: bool,
    /// Inferences asked for.
    pub iterations: u32,
    /// Tool calls asked for.
    pub tool_calls: u32,
    /// Executions asked for.
    pub children: u32,
    /// Tokens used, those of children included.
    pub usage: Usage,
    /// Tokens set aside for effects that are under way.
    pub reserved: u64,
}

/// What moves it between its two states.
pub const TABLE: &[Transition] = &[("Within", "budget.exceeded", "Exceeded"), ("Exceeded", "budget.granted", "Within")];

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits: Some(limits), ..Self::default() }
    }

    /// The state's name, as in the table.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        if self.exceeded { "Exceeded" } else { "Within" }
    }

    pub(super) const fn spend(&mut self, usage: Usage) {
        self.usage = self.usage.plus(usage);
    }

    pub(super) const fn reserve(&mut self, tokens: u64) {
        self.reserved = self.reserved.saturating_add(tokens);
    }

    pub(super) const fn release(&mut self, tokens: u64) {
        self.reserved = self.reserved.saturating_sub(tokens);
    }

    pub(super) const fn exceed(&mut self) {
        self.exceeded = true;
    }

    /// Raises a limit. An unknown dimension changes nothing.
    pub(super) fn grant(&mut self, dimension: &str, amount: u64) {
        let Some(limits) = &mut self.limits else { return };
        let small = u32::try_from(amount).unwrap_or(u32::MAX);
        match dimension {
            "iterations" => limits.iterations = limits.iterations.saturating_add(small),
            "tokens" => limits.tokens = limits.tokens.saturating_add(amount),
            "tokens_in" => limits.tokens_in = limits.tokens_in.map(|limit| limit.saturating_add(amount)),
            "tokens_out" => limits.tokens_out = limits.tokens_out.map(|limit| limit.saturating_add(amount)),
            "tool_calls" => limits.tool_calls = limits.tool_calls.saturating_add(small),
            "children" => limits.children = limits.children.saturating_add(small),
            _ => return,
        }
        self.exceeded = false;
    }

    /// The moment at which the execution ends whatever happens.
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        self.limits.map_or(Nanos::MAX, |l| l.deadline)
    }

    /// Tokens that are neither used nor set aside.
    #[must_use]
    pub fn tokens_left(&self) -> u64 {
        self.limits.map_or(0, |l| l.tokens.saturating_sub(self.usage.tokens).saturating_sub(self.reserved))
    }

    /// Tokens that may still be generated.
    #[must_use]
    pub fn tokens_out_left(&self) -> u64 {
        let out = self.limits.and_then(|l| l.tokens_out).unwrap_or(u64::MAX);
        out.saturating_sub(self.usage.completion_tokens).min(self.tokens_left())
    }

    /// Tool calls left.
    #[must_use]
    pub fn tool_calls_left(&self) -> u32 {
        self.limits.map_or(0, |l| l.tool_calls.saturating_sub(self.tool_calls))
    }

    /// Executions it may still ask for.
    #[must_use]
    pub fn children_left(&self) -> u32 {
        self.limits.map_or(0, |l| l.children.saturating_sub(self.children))
    }

    /// How many levels may stand below the topmost execution.
    #[must_use]
    pub fn depth_max(&self) -> u32 {
        self.limits.map_or(0, |l| l.depth)
    }

    /// The limit that another inference would break, if any.
    pub(super) fn exceeded(&self) -> Option<BudgetExceeded> {
        let limits = self.limits?;
        let exceeded = |dimension: &str, limit: u64, used: u64| {
            (used >= limit).then(|| BudgetExceeded { dimension: dimension.to_owned(), limit, used })
        };
        exceeded("iterations", limits.iterations.into(), self.iterations.into())
            .or_else(|| exceeded("tokens", limits.tokens, self.usage.tokens.saturating_add(self.reserved)))
            .or_else(|| exceeded("tokens_in", limits.tokens_in?, self.usage.prompt_tokens))
            .or_else(|| exceeded("tokens_out", limits.tokens_out?, self.usage.completion_tokens))
    }
}
