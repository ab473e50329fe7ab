//! What one program may use, where its author says something else than `[tools.commands]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Commands;

/// Limits by the names, units and bounds of `[tools.commands]`; what is left out is as it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Memory in MiB, files in memory included.
    pub memory_mib: Option<u32>,
    /// Processes and threads at once.
    pub processes: Option<u32>,
    /// Processor time in thousandths of one processor.
    pub processor_milli: Option<u32>,
    /// Files in `/tmp`, in MiB.
    pub tmp_mib: Option<u32>,
    /// One file, in MiB.
    pub file_mib: Option<u32>,
    /// Wall time of one call in seconds.
    pub timeout_s: Option<u32>,
    /// Output of one call, in KiB.
    pub output_kib: Option<u32>,
}

impl Quota {
    /// Finds a limit that nothing can have: its name, and what would be right.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        for (name, value, least, most) in [
            ("memory_mib", self.memory_mib, 16, 65_536),
            ("processes", self.processes, 1, 4_096),
            ("processor_milli", self.processor_milli, 100, 64_000),
            ("tmp_mib", self.tmp_mib, 1, 65_536),
            ("file_mib", self.file_mib, 1, 65_536),
            ("timeout_s", self.timeout_s, 1, 3_600),
            ("output_kib", self.output_kib, 1, 16_384),
        ] {
            if let Some(value) = value
                && !(least..=most).contains(&value)
            {
                return Err((name, format!("is {value}, must be {least} to {most}")));
            }
        }
        Ok(())
    }

    /// These limits, and where there are none those of all commands.
    pub(crate) fn over(&self, defaults: &Commands) -> Granted {
        Granted(Commands {
            memory_mib: self.memory_mib.unwrap_or(defaults.memory_mib),
            processes: self.processes.unwrap_or(defaults.processes),
            processor_milli: self.processor_milli.unwrap_or(defaults.processor_milli),
            tmp_mib: self.tmp_mib.unwrap_or(defaults.tmp_mib),
            file_mib: self.file_mib.unwrap_or(defaults.file_mib),
            timeout_s: self.timeout_s.unwrap_or(defaults.timeout_s),
            output_kib: self.output_kib.unwrap_or(defaults.output_kib),
            ..defaults.clone()
        })
    }
}

/// Every limit of one program.
#[derive(Debug, Clone)]
pub(crate) struct Granted(Commands);

impl std::ops::Deref for Granted {
    type Target = Commands;

    fn deref(&self) -> &Commands {
        &self.0
    }
}

impl Granted {
    /// Wall time of one call.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s.clamp(1, 3_600).into())
    }

    /// Output of one call, in bytes.
    pub(crate) fn output_bytes(&self) -> usize {
        (self.output_kib.clamp(1, 16_384) as usize) << 10
    }
}
