//! Bounds for a whole box: what all its processes together may use.
//!
//! Resource limits hold for one process, and whoever may start processes has as many of them as he likes; only a control
//! group bounds memory and number of all. Version 2 is used where its controllers are delegated to this process, version 1
//! where its hierarchies can be written to. Groups are plain directories: one a box, made before it starts and removed
//! when it is empty.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a box may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bounds {
    /// Memory of all processes and files in memory; there is no swap beside it.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub processes: u32,
    /// Processor time, in thousandths of one processor.
    pub processor_milli: u32,
}

/// Where groups can be made.
#[derive(Debug)]
pub(crate) enum Groups {
    /// One hierarchy for all.
    Two { base: PathBuf },
    /// One hierarchy each. The processor's may be missing.
    One { memory: PathBuf, processes: PathBuf, processor: Option<PathBuf> },
}

/// One box's group. Dropping it does not remove it.
#[derive(Debug)]
pub(crate) struct Group {
    /// One for each hierarchy, that of memory first.
    directories: Vec<PathBuf>,
    version_two: bool,
}

/// Period over which processor time is shared out, in microseconds.
const PERIOD_US: u64 = 100_000;
/// All our groups' names begin so.
const PREFIX: &str = "vlinders-box-";
/// The group of the worker itself, where it has to make room for those of boxes.
const SELF_NAME: &str = "vlinders-worker";

impl Groups {
    /// Finds where groups can be made. The reason says why boxes cannot be bounded.
    pub(crate) fn find(name: &str) -> Result<Self, String> {
        let own =
            fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("read /proc/self/cgroup: {error}"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self::version_two(&own, &mounts, name).or_else(|two| {
            Self::version_one(&own, &mounts, name).map_err(|one| format!("control groups cannot be used: {two}; {one}"))
        })
    }

    fn version_two(own: &str, mounts: &str, name: &str) -> Result<Self, String> {
        let place = place(own, mounts, None).ok_or("version 2 is not mounted")?;
        let offered = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
        if !["memory", "pids"].iter().all(|wanted| offered.split_whitespace().any(|there| there == *wanted)) {
            return Err(format!("version 2 offers no memory and pids at {}", place.display()));
        }
        let wanted: String = ["memory", "pids", "cpu"]
            .iter()
            .filter(|controller| offered.split_whitespace().any(|there| there == **controller))
            .map(|controller| format!("+{controller} "))
            .collect();
        let share = || fs::write(place.join("cgroup.subtree_control"), wanted.trim());
        // A group that holds processes shares nothing out, except the root: the worker moves into a group below.
        let shared = share().or_else(|_| {
            let below = place.join(SELF_NAME);
            fs::create_dir_all(&below)?;
            let processes = fs::read_to_string(place.join("cgroup.procs"))?;
            if let Some(other) = processes.lines().find(|process| !is_of_the_worker(process)) {
                return Err(io::Error::other(format!("process {other} in it is not of this worker")));
            }
            for process in processes.lines() {
                fs::write(below.join("cgroup.procs"), process)?;
            }
            share()
        });
        shared.map_err(|error| format!("{} is not delegated to this process: {error}", place.display()))?;
        Self::Two { base: place }.tried(name)
    }

    fn version_one(own: &str, mounts: &str, name: &str) -> Result<Self, String> {
        let of = |controller: &str| {
            place(own, mounts, Some(controller)).ok_or(format!("version 1 has no hierarchy of {controller}"))
        };
        Self::One { memory: of("memory")?, processes: of("pids")?, processor: of("cpu").ok() }.tried(name)
    }

    /// Makes a group and removes it.
    fn tried(self, name: &str) -> Result<Self, String> {
        let least = Bounds { memory_bytes: 64 << 20, processes: 8, processor_milli: 1_000 };
        let group =
            self.make(&format!("{name}-trial"), least).map_err(|error| format!("make a control group: {error}"))?;
        group.remove().map_err(|error| format!("remove a control group: {error}"))?;
        Ok(self)
    }

    /// Whether processor time is bounded, too.
    pub(crate) fn bounds_processor(&self) -> bool {
        match self {
            Self::Two { base } => {
                base.join("cgroup.subtree_control").exists() && has(&base.join("cgroup.controllers"), "cpu")
            }
            Self::One { processor, .. } => processor.is_some(),
        }
    }

    /// Makes the group of one box.
    pub(crate) fn make(&self, name: &str, bounds: Bounds) -> io::Result<Group> {
        let quota = PERIOD_US * u64::from(bounds.processor_milli) / 1_000;
        let (memory, processes) = (bounds.memory_bytes.to_string(), bounds.processes.to_string());
        // Each hierarchy's directory and what is written there; what is not everywhere may be missing.
        let wanted: Vec<(&PathBuf, Vec<(&str, String)>)> = match self {
            Self::Two { base } => vec![(
                base,
                vec![
                    ("memory.max", memory),
                    ("memory.swap.max?", "0".to_owned()),
                    ("memory.oom.group?", "1".to_owned()),
                    ("pids.max", processes),
                    ("cpu.max?", format!("{quota} {PERIOD_US}")),
                ],
            )],
            Self::One { memory: of_memory, processes: of_processes, processor } => {
                let memory = vec![("memory.limit_in_bytes", memory.clone()), ("memory.memsw.limit_in_bytes?", memory)];
                let processor = processor.iter().map(|of_processor| {
                    let period = ("cpu.cfs_period_us", PERIOD_US.to_string());
                    (of_processor, vec![period, ("cpu.cfs_quota_us", quota.to_string())])
                });
                [(of_memory, memory), (of_processes, vec![("pids.max", processes)])]
                    .into_iter()
                    .chain(processor)
                    .collect()
            }
        };
        let mut group = Group { directories: Vec::new(), version_two: matches!(self, Self::Two { .. }) };
        for (base, values) in wanted {
            if let Err(error) = group.add(&base.join(format!("{PREFIX}{name}")), &values) {
                let _ = group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }

    /// Removes groups of boxes whose spawner died. What is not empty cannot be removed, and is by the next.
    pub(crate) fn sweep(&self) {
        let bases: Vec<&PathBuf> = match self {
            Self::Two { base } => vec![base],
            Self::One { memory, processes, processor } => [memory, processes].into_iter().chain(processor).collect(),
        };
        for entry in bases.into_iter().flat_map(fs::read_dir).flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.strip_prefix(PREFIX).is_some_and(|owner| !is_alive(owner)) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

impl Group {
    /// Makes a directory and sets its limits. A name that ends in `?` is left out where there is no such file: not every
    /// kernel counts swap, or shares out processors.
    fn add(&mut self, directory: &Path, values: &[(&str, String)]) -> io::Result<()> {
        fs::create_dir(directory)?;
        self.directories.push(directory.to_owned());
        for (name, value) in values {
            let (name, optional) = name.strip_suffix('?').map_or((*name, false), |name| (name, true));
            let file = directory.join(name);
            if !optional || file.exists() {
                fs::write(file, value).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
            }
        }
        Ok(())
    }

    /// Where memory is bounded.
    fn memory(&self) -> &Path {
        self.directories.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// The files that a process writes `0` to, to become part of it. They are opened here, so that a process that has
    /// given up its user may still join.
    pub(crate) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open =
            |directory: &PathBuf| File::options().write(true).open(directory.join("cgroup.procs")).map(Into::into);
        self.directories.iter().map(open).collect()
    }

    /// Whether the kernel ended a process of it for its memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let file = if self.version_two { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory().join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }

    /// Ends every process in it.
    pub(crate) fn kill(&self) {
        if self.version_two && fs::write(self.memory().join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let processes = fs::read_to_string(self.memory().join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    }

    /// Removes it, which works once it is empty.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for directory in &self.directories {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether the spawner lives that a group is named after: its process and when that started.
fn is_alive(owner: &str) -> bool {
    let mut parts = owner.split('-');
    match (parts.next(), parts.next()) {
        (Some(process), Some(start)) => started(process).as_deref() == Some(start),
        _ => false,
    }
}

/// When a process started, in ticks since the boot.
pub(crate) fn started(process: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Whether a process is this one's parent, which is the worker, or a child of it.
fn is_of_the_worker(process: &str) -> bool {
    let worker = rustix::process::getppid().map_or_else(String::new, |parent| parent.as_raw_nonzero().to_string());
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(1));
    process == worker || parent == Some(worker.as_str())
}

fn has(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).unwrap_or_default().split_whitespace().any(|there| there == word)
}

/// The directory of this process's group: in version 2, or in the hierarchy of a controller of version 1.
fn place(own: &str, mounts: &str, controller: Option<&str>) -> Option<PathBuf> {
    let group = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|there| there == controller),
        };
        found.then(|| path.to_owned())
    })?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut kind = kind.split(' ');
        let found = match (kind.next()?, controller) {
            ("cgroup2", None) => true,
            ("cgroup", Some(controller)) => kind.nth(1)?.split(',').any(|there| there == controller),
            _ => false,
        };
        // A mount may show a part of the hierarchy only.
        let below = if root == "/" { Some(group.as_str()) } else { group.strip_prefix(root) };
        found.then(|| Path::new(point).join(below.unwrap_or_default().trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
33 24 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw";
    const OWN: &str = "9:pids:/docker/abc/x\n4:memory:/\n2:cpu,cpuacct:/user.slice\n0::/app.slice/vlinders.service\n";

    #[test]
    fn a_process_finds_its_groups_in_either_version() {
        let at = |controller| place(OWN, MOUNTS, controller);
        assert_eq!(at(None), Some("/sys/fs/cgroup/unified/app.slice/vlinders.service".into()));
        assert_eq!(at(Some("memory")), Some("/sys/fs/cgroup/memory/".into()));
        assert_eq!(at(Some("cpu")), Some("/sys/fs/cgroup/cpu,cpuacct/user.slice".into()));
        assert_eq!(at(Some("pids")), Some("/sys/fs/cgroup/pids/x".into()), "a mount of a part");
        assert_eq!(at(Some("freezer")), None);
    }
}
