//! Whether a model fits: the memory its files say it will need, against what the machine may give and what others take.
//!
//! A loaded model counts with its weights as they lie in memory and with the most its keys and values may take, although
//! it takes those as it needs them: a model that was admitted never runs short later. What is kept of models that are
//! gone does not count, because it gives way.

use std::path::Path;

use crate::need::Need;

/// Part of the machine's memory that models may take when no setting says: the rest is for everything else.
const PART: (u64, u64) = (4, 5);

/// The memory for models. Pure, but for `of_machine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes that all models together may take.
    pub(crate) max_bytes: u64,
    /// Bytes the keys and values of each may take.
    pub(crate) cache_bytes_max: u64,
}

/// A model does not fit. Every number a person needs to change that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{model} needs {} (weights {}, up to {} for keys and values, {} more while it is read), and {} of {} are free{}",
    size(*needed), size(*weights), size(*cache), size(*reading), size(*free), size(*max), loaded(taken)
)]
pub(crate) struct NoRoom {
    /// Which.
    pub model: String,
    /// Bytes it needs together.
    pub needed: u64,
    /// Of these, its weights.
    pub weights: u64,
    /// The most its keys and values may take.
    pub cache: u64,
    /// What reading it takes for a while.
    pub reading: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes for all models.
    pub max: u64,
    /// What loaded models take.
    pub taken: Vec<(String, u64)>,
}

impl Plan {
    /// The configured limit, or the default part of what the system or its control group has.
    pub(crate) fn of_machine(configured: Option<u64>, cache_bytes_max: u64) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits = group_limits(&group, |file| std::fs::read_to_string(file).ok());
        // A machine that does not say what it has sets no limit.
        let has = total(&meminfo).into_iter().chain(limits).min().unwrap_or(u64::MAX);
        Self { max_bytes: configured.unwrap_or(has / PART.1 * PART.0), cache_bytes_max }
    }

    /// Bytes a loaded model counts with.
    pub(crate) const fn counted(&self, weights_bytes: u64) -> u64 {
        weights_bytes.saturating_add(self.cache_bytes_max)
    }

    /// Whether a model fits beside those that are there, each with the bytes it counts with.
    pub(crate) fn admit(&self, model: &str, need: &Need, taken: Vec<(String, u64)>) -> Result<(), NoRoom> {
        let used: u64 = taken.iter().map(|(_, bytes)| bytes).sum();
        let free = self.max_bytes.saturating_sub(used);
        let needed = self.counted(need.weights_bytes).saturating_add(need.reading_bytes);
        if needed <= free {
            return Ok(());
        }
        Err(NoRoom {
            model: model.to_owned(),
            needed,
            weights: need.weights_bytes,
            cache: self.cache_bytes_max,
            reading: need.reading_bytes,
            free,
            max: self.max_bytes,
            taken,
        })
    }
}

/// `MemTotal` of `/proc/meminfo`, bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// `memory.max` of the control group (version 2) that `/proc/self/cgroup` names, and of those above it.
fn group_limits(group: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<u64> {
    let Some(path) = group.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let root = Path::new("/sys/fs/cgroup");
    let mut limits = Vec::new();
    let mut directory = root.join(path.trim());
    while directory.starts_with(root) {
        // A group without a limit says `max`.
        limits.extend(read(&directory.join("memory.max")).and_then(|text| text.trim().parse::<u64>().ok()));
        if !directory.pop() {
            break;
        }
    }
    limits
}

fn loaded(taken: &[(String, u64)]) -> String {
    let each: Vec<String> = taken.iter().map(|(name, bytes)| format!("{name} takes {}", size(*bytes))).collect();
    if each.is_empty() { String::new() } else { format!(": {}", each.join(", ")) }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn need(weights: u64, reading: u64) -> Need {
        Need { weights_bytes: weights * MIB, reading_bytes: reading * MIB, ..Need::default() }
    }

    #[test]
    fn a_model_fits_to_the_last_byte_and_is_refused_with_the_numbers() {
        let plan = Plan { max_bytes: 1_000 * MIB, cache_bytes_max: 64 * MIB };
        let tiny = || vec![("tiny".to_owned(), plan.counted(36 * MIB))];
        assert_eq!(plan.admit("large", &need(800, 36), tiny()), Ok(()));
        let refused = plan.admit("large", &need(800, 37), tiny()).expect_err("one too many");
        assert_eq!((refused.needed, refused.free), (901 * MIB, 900 * MIB));
        assert_eq!(
            refused.to_string(),
            "large needs 901.0 MiB (weights 800.0 MiB, up to 64.0 MiB for keys and values, 37.0 MiB more while it is \
             read), and 900.0 MiB of 1000.0 MiB are free: tiny takes 100.0 MiB"
        );
        let alone = plan.admit("huge", &need(u64::MAX / MIB, 0), Vec::new()).expect_err("far too many");
        assert!(alone.to_string().ends_with("1000.0 MiB of 1000.0 MiB are free"), "{alone}");
    }

    #[test]
    fn a_machine_says_what_it_has_by_its_memory_and_its_groups() {
        assert_eq!(total("MemTotal:       24683520 kB\nMemFree:  1 kB\n"), Some(24_683_520 * 1_024));
        assert_eq!(total("something else"), None);
        let files = |file: &Path| match file.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("4096\n".to_owned()),
            "/sys/fs/cgroup/memory.max" => None,
            other => panic!("nobody should read {other}"),
        };
        assert_eq!(group_limits("1:name=systemd:/x\n0::/a/b\n", files), [4_096]);
        assert_eq!(group_limits("1:memory:/x\n", files), [0_u64; 0], "version 1 says nothing here");
    }

    #[test]
    fn a_setting_goes_before_the_machine() {
        assert_eq!(Plan::of_machine(Some(7), 1).max_bytes, 7);
        let found = Plan::of_machine(None, 1).max_bytes;
        assert!(found > 0 && found < u64::MAX / 2, "this machine has {found} bytes");
    }
}
