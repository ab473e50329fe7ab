//! The inner half of the box: what the runner gives up before it reads a call.
//!
//! Resource limits, then landlock, then a seccomp allow-list. In a box for one of the built-in tools what is left is
//! reading `/workspace` and writing an answer: there is no way to start a process or a thread, open a socket, or run
//! another program, so most of the kernel is out of reach. In a box for commands the program that the runner becomes has
//! files, processes and pipes of its own, and nothing that leads out; what it may use in all is bounded by the control
//! group around the box. Both are the same in every tier.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getuid, setrlimit};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

use crate::crew::Crew;
use crate::message::Allowance;
use crate::system_calls::{ARGUMENTS, COMMANDS, INSIDE, NO_IOCTL};
use crate::{NOBODY, RUNNER, WORKSPACE};

/// Memory a call may allocate. Search keeps little; the largest file read is 16 MiB, held twice.
const DATA_BYTES_MAX: u64 = 256 << 20;
/// Address space, mapped binaries included.
const ADDRESS_BYTES_MAX: u64 = 4 << 30;
/// CPU time of a thread, above the wall time of every tool: it ends what outlives its parent.
const CPU_SECONDS_MAX: u64 = 15;
/// Files open at once; the walk opens one directory a level.
const FILES_MAX: u64 = 256;

/// The same for a command: build tools open many.
const COMMAND_FILES_MAX: u64 = 1_024;
/// Devices that a command may use: nothing, noughts, noise.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

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
    /// What no command needs.
    Commands(Allowance),
}

/// Locks this process up, for good. Returns what is in force, and the threads there are.
pub(crate) fn confine(layers: Layers) -> Result<(Vec<String>, Crew), Error> {
    let kind = match layers {
        Layers::Commands(_) => only_in_a_box_for_commands()?,
        Layers::All | Layers::ContainerOnly => only_in_a_box()?,
    };
    close_inherited();
    if layers == Layers::ContainerOnly {
        // Namespaces alone are no sandbox, so there must be a container with its own filter and limits.
        let refused = || Error("only a container is tried alone".to_owned());
        return if kind == Kind::Container { Ok((Vec::new(), Crew::default())) } else { Err(refused()) };
    }
    let failed = |what: &str, error: &dyn std::fmt::Display| Error(format!("{what}: {error}"));
    // Whoever made the box put us there; tools reach files from there.
    if std::env::current_dir().map_err(|error| failed("tell where this is", &error))?.as_os_str() != WORKSPACE {
        return Err(Error(format!("the box does not begin in {WORKSPACE}")));
    }
    let mut enforced = Vec::new();
    for (resource, limit) in limits(layers, kind) {
        set_limit(resource, limit)?;
    }
    enforced.push("rlimits".to_owned());
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("set no_new_privs", &error))?;
    enforced.push("no-new-privileges".to_owned());
    enforced.extend(landlock(layers).map_err(|error| failed("restrict with landlock", &error))?);
    // The last filter lets no other be added.
    kill_foreign_numbers().map_err(|error| failed("install the filter of foreign calls", &error))?;
    let mut crew = Crew::default();
    let filtered = if let Layers::Commands(_) = layers {
        seccomp_for_commands()
    } else {
        // Threads inherit what was given up until now; the filter falls for all of them together.
        crew = Crew::start().map_err(|error| failed("start threads", &error))?;
        set_limit(Resource::Cpu, CPU_SECONDS_MAX * (1 + crew.hands()))?;
        set_limit(Resource::Nproc, 0)?;
        seccomp()
    };
    filtered.map_err(|error| failed("install the seccomp filter", &error))?;
    enforced.push("seccomp".to_owned());
    Ok((enforced, crew))
}

fn set_limit(resource: Resource, limit: u64) -> Result<(), Error> {
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(resource, limit).map_err(|error| Error(format!("set a resource limit: {error}")))
}

fn limits(layers: Layers, kind: Kind) -> Vec<(Resource, u64)> {
    let Layers::Commands(allowed) = layers else {
        return vec![
            (Resource::Core, 0),
            (Resource::Fsize, 0),
            (Resource::Nofile, FILES_MAX),
            (Resource::Data, DATA_BYTES_MAX),
            (Resource::As, ADDRESS_BYTES_MAX),
        ];
    };
    let mut limits =
        vec![(Resource::Core, 0), (Resource::Fsize, allowed.file_bytes), (Resource::Nofile, COMMAND_FILES_MAX)];
    // Counted in the box alone where it has a user namespace; elsewhere it would be the user's of the whole machine.
    if kind == Kind::Bubblewrap {
        limits.push((Resource::Nproc, allowed.processes.into()));
    }
    limits
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
    if bare && !getuid().is_root() && root_is_read_only() && stripped() == Some(Filter::Present) {
        return Ok(Kind::Container);
    }
    Err(Error("the tool runner only runs inside its box".to_owned()))
}

/// A box for commands shows a system's programs, so what is missing tells nothing. But nobody's login has this program
/// at this path, a root that cannot be written to, and no capability within reach.
fn only_in_a_box_for_commands() -> Result<Kind, Error> {
    if !Path::new(RUNNER).exists() || getuid().is_root() || !root_is_read_only() {
        return Err(Error("the tool runner only runs inside its box".to_owned()));
    }
    match stripped() {
        Some(Filter::Present) => Ok(Kind::Container),
        Some(Filter::Absent) if getuid().as_raw() == NOBODY => Ok(Kind::Bubblewrap),
        _ => Err(Error("the tool runner only runs inside its box".to_owned())),
    }
}

fn root_is_read_only() -> bool {
    rustix::fs::statvfs("/").is_ok_and(|root| root.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Whether a process without privileges runs under a filter already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Present,
    Absent,
}

/// Whether this process has no capability within reach and cannot gain any; if so, whether there is a filter.
fn stripped() -> Option<Filter> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let no_capabilities = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"]
        .iter()
        .all(|set| field(set) == Some("0000000000000000"));
    let filter = if field("Seccomp:") == Some("2") { Filter::Present } else { Filter::Absent };
    (no_capabilities && field("NoNewPrivs:") == Some("1")).then_some(filter)
}

/// Best effort downwards: on an old kernel the mount namespace alone keeps files out of reach.
fn landlock(layers: Layers) -> Result<Option<String>, landlock::RulesetError> {
    let abi = ABI::V7;
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    rules = match layers {
        Layers::Commands(allowed) => {
            let making = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock;
            let writing = AccessFs::from_all(abi) & !making;
            let workspace = if allowed.writes { writing } else { reading | AccessFs::Execute };
            // What was written to a place for the moment is not run from there.
            rules
                .add_rules(path_beneath_rules(programs(), reading | AccessFs::Execute))?
                .add_rules(path_beneath_rules(["/proc"], reading))?
                .add_rules(path_beneath_rules(DEVICES, AccessFs::ReadFile | AccessFs::WriteFile))?
                .add_rules(path_beneath_rules(["/tmp"], writing & !BitFlags::from(AccessFs::Execute)))?
                .add_rules(path_beneath_rules([WORKSPACE], workspace))?
        }
        Layers::All | Layers::ContainerOnly => rules.add_rules(path_beneath_rules([WORKSPACE], reading))?,
    };
    let status = rules.restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Some("landlock".to_owned()),
        RulesetStatus::PartiallyEnforced => Some("landlock-partial".to_owned()),
        RulesetStatus::NotEnforced => None,
    })
}

/// What the box shows of a system: everything at its root but what has a rule of its own, or none.
fn programs() -> Vec<PathBuf> {
    let apart = ["/tmp", "/proc", "/dev", "/sys", WORKSPACE];
    let entries = std::fs::read_dir("/").into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| apart.iter().all(|other| path != Path::new(other))).collect()
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

/// A call in the numbering of x32 ends the process. An engine's own filter ends only the thread that makes one, and a
/// process whose first thread is gone would stay until its time is over.
fn kill_foreign_numbers() -> Result<(), Box<dyn std::error::Error>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    const X32: u32 = 0x4000_0000;
    let step = |code, jf, k| seccompiler::sock_filter { code, jt: 0, jf, k };
    let program = vec![
        // The call's number; whether it is at least that; and what then, and what else.
        step((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0),
        step((libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16, 1, X32),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, libc::SECCOMP_RET_ALLOW),
    ];
    seccompiler::apply_filter_all_threads(&program)?;
    Ok(())
}

/// The same for commands. Two filters, since one has one way to refuse: what is "not implemented" makes libraries use an
/// older call, whose arguments a filter can see.
fn seccomp_for_commands() -> Result<(), Box<dyn std::error::Error>> {
    let equal = |index, mask: u32, value: u32| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask.into()), value.into())
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = COMMANDS.iter().map(|(_, number)| (*number, Vec::new())).collect();
    for ((_, number), conditions) in ARGUMENTS {
        let all: Result<Vec<_>, _> = conditions.iter().map(|c| equal(c.index, c.mask, c.value)).collect();
        rules.insert(*number, vec![SeccompRule::new(all?)?]);
    }
    let other = |request: &u32| SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, (*request).into());
    let others: Result<Vec<_>, _> = NO_IOCTL.iter().map(other).collect();
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(others?)?]);
    rules.insert(libc::SYS_clone3, Vec::new());
    let not_implemented = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    for (rules, otherwise, matched) in [
        (not_implemented, SeccompAction::Allow, errno(libc::ENOSYS)),
        (rules, errno(libc::EPERM), SeccompAction::Allow),
    ] {
        let filter = SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?;
        let program: seccompiler::BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}
