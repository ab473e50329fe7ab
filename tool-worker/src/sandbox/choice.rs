//! Which tier a worker uses: what is configured, what is there, and what passes the self-test.

use std::path::Path;
use std::time::Duration;

use runtime::Tasks;
use serde::{Deserialize, Serialize};
use tool_runner::message::{BoxedAnswer, BoxedCall};
use tool_runner::probe;

use super::bubblewrap::Bubblewrap;
use super::docker::Docker;
use super::made_for::{Access, MadeFor, Surroundings};
use super::program::Program;
use super::{Place, Sandbox, Tier, Trouble};
use crate::config::Config;
use crate::failure::Failure;

/// Wall time of the self-test: a box on a busy machine, many times over.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The tier, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Docker where an engine answers and passes the self-test, else bubblewrap.
    #[default]
    Auto,
    /// Docker or nothing.
    Docker,
    /// Bubblewrap or nothing.
    Bubblewrap,
}

impl Choice {
    /// The tiers to try, best first.
    fn tiers(self) -> &'static [Self] {
        match self {
            Self::Auto => &[Self::Docker, Self::Bubblewrap],
            Self::Docker => &[Self::Docker],
            Self::Bubblewrap => &[Self::Bubblewrap],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Bubblewrap => "bubblewrap",
        }
    }
}

impl Sandbox {
    /// Takes the first tier that is there and holds. Fails with the reasons of all of them.
    pub async fn start(config: &Config) -> Result<Self, String> {
        let program = Program::find(config).await?;
        let tiers = config.sandbox.tiers();
        let mut reasons = Vec::new();
        for tier in tiers {
            match Box::pin(tested(*tier, config, &program)).await {
                Ok(sandbox) => {
                    for reason in &reasons {
                        tracing::info!(reason, taken = sandbox.tier(), "a better sandbox is not to be had");
                    }
                    return Ok(sandbox);
                }
                Err(reason) if tiers.len() == 1 => return Err(reason),
                Err(reason) => reasons.push(format!("{}: {reason}", tier.name())),
            }
        }
        Err(reasons.join("; "))
    }
}

/// Starts boxes of a tier around a throw-away workspace and tries to get out of them.
async fn tested(choice: Choice, config: &Config, program: &Program) -> Result<Sandbox, String> {
    let tasks = Tasks::new();
    let tier = match choice {
        Choice::Docker => Tier::Docker(Box::new(Docker::find(config, program, &tasks).await?)),
        Choice::Bubblewrap | Choice::Auto => {
            Tier::Bubblewrap(Box::new(Bubblewrap::find(&config.bubblewrap, program, &tasks).await?))
        }
    };
    let workspace = tempfile::tempdir().map_err(|error| format!("make a directory for the self-test: {error}"))?;
    canary(workspace.path()).map_err(|error| format!("prepare the self-test: {error}"))?;
    let call = BoxedCall::probe(probe::ESCAPE);
    let place = Place::at(workspace.path()).map_err(|error| format!("look at the self-test's directory: {error}"))?;
    let for_tool = MadeFor::Tool(place.clone());
    let tested = match tier.prepare(&for_tool).await {
        Ok(prepared) => self_test(prepared.carry_out(&call, SELF_TEST_TIMEOUT).await),
        Err(failure) => Err(failure.detail),
    };
    let inside = match tested {
        Ok(inside) => inside,
        Err(reason) => {
            tier.close().await;
            return Err(reason);
        }
    };
    let all = |more: &[String], inside: Vec<String>| {
        let outside = tier.enforced().iter().map(|layer| (*layer).to_owned());
        outside.chain(more.iter().cloned()).chain(inside).collect()
    };
    let for_commands = match tier.bounded() {
        Err(reason) => Err(reason.to_owned()),
        Ok(bounded) => {
            let workspace = Some((place, Access::Read));
            let surroundings = Surroundings { workspace, reads: vec![], image: None, limits: config.commands.limits() };
            match tier.prepare(&MadeFor::Command(surroundings)).await {
                Ok(prepared) => self_test(prepared.probe(probe::ESCAPE, SELF_TEST_TIMEOUT).await),
                Err(failure) => Err(failure.detail),
            }
            .map(|inside| all(bounded, inside))
        }
    };
    let enforced = all(&[], inside);
    let boxes_each = config.warm_boxes.min(WARM_BOXES_MAX) as usize;
    Ok(Sandbox::new(tier, enforced, for_commands, boxes_each, &tasks))
}

/// Boxes for one workspace at most.
const WARM_BOXES_MAX: u32 = 16;

/// What the self-test's workspace holds. Others may read it, because no command runs as root.
fn canary(workspace: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(workspace, std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(workspace.join(probe::CANARY), probe::CANARY)
}

/// What the runner says is in force, if nothing was open.
fn self_test(answer: Result<BoxedAnswer, Trouble>) -> Result<Vec<String>, String> {
    let BoxedAnswer { enforced, outcome } = answer.map_err(|trouble| match trouble {
        Trouble::Failed(failure) => failure.detail,
        Trouble::Lost(why) => why,
    })?;
    // What is said to be in force is tested; an old kernel without landlock is no reason to refuse.
    let landlocked = enforced.iter().any(|layer| layer == "landlock");
    let open = Result::from(outcome).map_err(|failure: Failure| failure.detail)?;
    let relevant = |line: &&str| landlocked || !line.starts_with(probe::ONLY_LANDLOCK);
    let open: Vec<&str> = open.lines().filter(relevant).collect();
    match open.is_empty() {
        true => Ok(enforced),
        false => Err(format!("the self-test found it open: {}", open.join(", "))),
    }
}
