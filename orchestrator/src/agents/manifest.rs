//! Reads agent types from the files of a directory and says which can be taken. Pure: the texts come as arguments.
//!
//! A file is refused alone: the others are taken, and where an earlier version of a refused one is known, it stays.

use std::collections::BTreeMap;

use schemas::agent::{self, Refused, Source, Team, Wrong};
use schemas::rpc::AgentType;

/// A file's stem, under which its agent type is registered.
pub(crate) type Stem = String;

/// What became of the files of a directory.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Admitted {
    /// Agent types that count now.
    pub(crate) agents: BTreeMap<Stem, AgentType>,
    /// Files that were refused.
    pub(crate) refused: BTreeMap<Stem, Refused>,
    /// Whether one was refused for what is not registered (yet): another look may come to another end.
    pub(crate) unsettled: bool,
}

/// One candidate for an agent type.
struct Candidate {
    agent: AgentType,
    /// Its text, unless it is the version that was taken before.
    text: Option<String>,
}

/// Decides about the files of a directory (stem and text). `before` are the versions taken earlier, `others` the agent
/// types from elsewhere.
pub(crate) fn admit(
    files: &BTreeMap<Stem, String>,
    before: &BTreeMap<Stem, AgentType>,
    others: &[(Source, AgentType)],
) -> Admitted {
    let mut admitted = Admitted::default();
    let mut candidates: BTreeMap<Stem, Candidate> = BTreeMap::new();
    for (stem, text) in files {
        match read(stem, text) {
            Ok(agent) => drop(candidates.insert(stem.clone(), Candidate { agent, text: Some(text.clone()) })),
            Err(refused) => admitted.refuse(stem, refused, &mut candidates, before),
        }
    }
    loop {
        let named = candidates.values().map(|c| (Source::Manifest, c.agent.clone()));
        let team: Team = agent::effective(named.chain(others.iter().cloned()));
        let wrong: Vec<(Stem, Wrong)> = candidates
            .iter()
            .filter_map(|(stem, c)| Some((stem.clone(), agent::check_team(&c.agent, &team).err()?)))
            .collect();
        if wrong.is_empty() {
            admitted.agents = candidates.into_iter().map(|(stem, c)| (stem, c.agent)).collect();
            return admitted;
        }
        admitted.unsettled = true;
        for (stem, wrong) in wrong {
            let text = candidates.remove(&stem).and_then(|c| c.text);
            if let Some(text) = text {
                let refused = refusal(&stem, &text, &wrong);
                admitted.refuse(&stem, refused, &mut candidates, before);
            }
        }
    }
}

impl Admitted {
    fn refuse(
        &mut self,
        stem: &Stem,
        refused: Refused,
        candidates: &mut BTreeMap<Stem, Candidate>,
        before: &BTreeMap<Stem, AgentType>,
    ) {
        self.refused.insert(stem.clone(), refused);
        if let Some(agent) = before.get(stem) {
            candidates.insert(stem.clone(), Candidate { agent: agent.clone(), text: None });
        }
    }
}

/// Reads one file and checks it by itself.
fn read(stem: &str, text: &str) -> Result<AgentType, Refused> {
    let agent: AgentType = toml::from_str(text).map_err(|e| Refused {
        file: file(stem),
        line: e.span().map(|span| line_at(text, span.start)),
        reason: e.message().to_owned(),
    })?;
    agent::check(&agent).map_err(|wrong| refusal(stem, text, &wrong))?;
    if agent.name != stem {
        let reason = format!("is {:?}: call the file {}.toml, so that each name has one file", agent.name, agent.name);
        return Err(refusal(stem, text, &Wrong { field: "name", reason }));
    }
    Ok(agent)
}

fn refusal(stem: &str, text: &str, wrong: &Wrong) -> Refused {
    Refused { file: file(stem), line: line_of(text, wrong.field), reason: wrong.to_string() }
}

fn file(stem: &str) -> String {
    format!("{stem}.toml")
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The line that sets a field; none when it is left out.
fn line_of(text: &str, field: &str) -> Option<usize> {
    let (table, key) = field.split_once('.').map_or(("", field), |(table, key)| (table, key));
    let mut current = "";
    for (i, line) in text.lines().map(str::trim).enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            current = header.split(']').next().unwrap_or_default().trim();
        } else if current == table && line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('=')) {
            return Some(i + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests;
