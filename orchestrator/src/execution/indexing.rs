//! What an index execution has asked for and heard: the plan, its parts, the end. Its calls are carried out by analysis
//! workers, and their results are read here, for the parts follow from the plan and the end tells what came of them.

use schemas::ToolCall;
use schemas::code::{self, FilesDone, FinishRequest, IndexReport, Plan};
use serde::{Deserialize, Serialize};

/// Where an index execution stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Indexing {
    /// The turn of the calls: 0 plans, 1 reads, 2 ends.
    pub(super) turn: u32,
    /// What is to be carried out in this turn.
    pub(super) calls: Vec<ToolCall>,
    /// Nothing is left to do: the last call gave the answer, or why there is none.
    pub(super) ended: Option<Result<(), String>>,
    list: Option<String>,
    report: IndexReport,
}

impl Indexing {
    pub(super) const PLANS: u32 = 0;
    pub(super) const READS: u32 = 1;
    pub(super) const ENDS: u32 = 2;

    pub(super) fn begin(plan: ToolCall) -> Self {
        Self { calls: vec![plan], ..Self::default() }
    }

    /// Takes in what came of a turn's calls, in their order: the result, or what went wrong.
    pub(super) fn joined(&mut self, results: Vec<Result<String, String>>) {
        match self.turn {
            Self::PLANS => self.planned(results.into_iter().next().unwrap_or_else(|| Err("no plan".to_owned()))),
            Self::READS => {
                for result in results {
                    match result.and_then(|text| read::<FilesDone>(&text)) {
                        Ok(part) => self.report.add(part),
                        Err(why) => self.report.failed.push(why),
                    }
                }
                self.finish();
            }
            _ => {
                let last = results.into_iter().next().unwrap_or_else(|| Err("no answer".to_owned()));
                self.ended = Some(last.map(drop));
            }
        }
    }

    fn planned(&mut self, result: Result<String, String>) {
        match result.and_then(|text| read::<Plan>(&text)) {
            Err(why) => self.ended = Some(Err(why)),
            Ok(plan) => {
                self.report = IndexReport::of(&plan);
                self.calls = plan.calls();
                self.list = plan.list.map(|list| list.sha256);
                self.turn = Self::READS;
                if self.calls.is_empty() {
                    self.finish();
                }
            }
        }
    }

    fn finish(&mut self) {
        let request = FinishRequest {
            workspace: self.report.workspace.clone(),
            list: self.list.take(),
            report: std::mem::take(&mut self.report),
        };
        let arguments = serde_json::to_string(&request).expect("texts and numbers are always written");
        self.calls = vec![ToolCall::new("finish", code::FINISH, arguments)];
        self.turn = Self::ENDS;
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("an analysis worker answered nonsense: {error}"))
}
