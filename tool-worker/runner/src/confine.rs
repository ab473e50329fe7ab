//! The inner half of the box: what the runner gives up before it reads a call.
//!
//! Resource limits, then landlock (read `/workspace`, nothing else), then a seccomp allow-list of what reading files
//! and writing an answer takes. There is no way to start a process or a thread, open a socket, or run another
//! program, so most of the kernel is out of reach. It is the same in every kind of box.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getuid, setrlimit};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

use crate::system_calls::INSIDE;
use crate::{NOBODY, WORKSPACE};

/// Memory a call may allocate. Search keeps little; the largest file read is 16 MiB, held twice.
const DATA_BYTES_MAX: u64 = 256 << 20;
/// Address space, mapped binaries included.
const ADDRESS_BYTES_MAX: u64 = 4 << 30;
/// CPU time, above the wall time of every tool: it ends what outlives its parent.
const CPU_SECONDS_MAX: u64 = 15;
/// Files open at once; the walk opens one directory a level.
const FILES_MAX: u64 = 256;

/// Why the runner does not run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Error(String);

/// How much the runner gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    /// All it can, which is the only way to carry out tools.
    All,
    /// Nothing of its own, to try what the container around it withstands alone. Takes probes only.
    ContainerOnly,
}

/// Locks this process up, for good. Returns what is in force.
pub(crate) fn confine(layers: Layers) -> Result<Vec<String>, Error> {
    let kind = only_in_a_box()?;
    close_inherited();
    if layers == Layers::ContainerOnly {
        // Namespaces alone are no sandbox, so there must be a container with its own filter and limits.
        let refused = || Error("only a container is tried alone".to_owned());
        return if kind == Kind::Container { Ok(Vec::new()) } else { Err(refused()) };
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| Error(format!("{what}: {error}"));
    let mut enforced = Vec::new();
    for (resource, limit) in [
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Nofile, FILES_MAX),
        (Resource::Cpu, CPU_SECONDS_MAX),
        (Resource::Data, DATA_BYTES_MAX),
        (Resource::As, ADDRESS_BYTES_MAX),
    ] {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).map_err(|error| failed("set a resource limit", &error))?;
    }
    enforced.push("rlimits".to_owned());
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("set no_new_privs", &error))?;
    enforced.push("no-new-privileges".to_owned());
    enforced.extend(landlock().map_err(|error| failed("restrict with landlock", &error))?);
    seccomp().map_err(|error| failed("install the seccomp filter", &error))?;
    enforced.push("seccomp".to_owned());
    Ok(enforced)
}

/// A worker may have been started with open files that every program it starts gets, through any number of boxes.
fn close_inherited() {
    #[expect(unsafe_code, reason = "there is no safe way to close what nobody here owns")]
    // SAFETY: the process has opened nothing yet but its standard streams, which are kept.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if closed == 0 {
        return;
    }
    // A kernel before 5.9.
    for descriptor in 3..1024 {
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: as above; closing what is not open does nothing.
        unsafe {
            libc::close(descriptor)
        };
    }
}

/// What kind of box is around this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bubblewrap,
    Container,
}

/// The runner is a program like any other and somebody may start it by hand; it must not probe or read their machine.
fn only_in_a_box() -> Result<Kind, Error> {
    let any = |paths: &[&str]| paths.iter().any(|path| Path::new(path).exists());
    if getuid().as_raw() == NOBODY && !any(&["/etc", "/proc", "/usr", "/home"]) {
        return Ok(Kind::Bubblewrap);
    }
    // An engine puts `/proc` and three files of `/etc` into every container. Where somebody's system lies, it is none of
    // ours; and ours has nothing left to give up but what the runner itself does.
    let bare = !any(&["/usr", "/home", "/root", "/var", "/bin", "/etc/passwd"]);
    if bare && !getuid().is_root() && root_is_read_only() && stripped() {
        return Ok(Kind::Container);
    }
    Err(Error("the tool runner only runs inside its box".to_owned()))
}

fn root_is_read_only() -> bool {
    rustix::fs::statvfs("/").is_ok_and(|root| root.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Whether this process has no capability within reach, cannot gain any, and runs under a filter already.
fn stripped() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let no_capabilities = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"]
        .iter()
        .all(|set| field(set) == Some("0000000000000000"));
    no_capabilities && field("NoNewPrivs:") == Some("1") && field("Seccomp:") == Some("2")
}

/// Best effort downwards: on an old kernel the mount namespace alone keeps files out of reach.
fn landlock() -> Result<Option<String>, landlock::RulesetError> {
    let abi = ABI::V7;
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules([WORKSPACE], reading))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Some("landlock".to_owned()),
        RulesetStatus::PartiallyEnforced => Some("landlock-partial".to_owned()),
        RulesetStatus::NotEnforced => None,
    })
}

/// Everything not listed fails with "operation not permitted"; a foreign architecture is killed.
fn seccomp() -> Result<(), Box<dyn std::error::Error>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = INSIDE.iter().map(|(_, number)| (*number, Vec::new())).collect();
    // New memory may hold data, never code.
    for number in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        let data_only = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
        rules.insert(number, vec![SeccompRule::new(vec![data_only])?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)?;
    Ok(())
}
