//! Which system calls a box may make, said once and used twice.
//!
//! [`INSIDE`] is what the runner leaves itself before it reads a call; [`STARTING`] is what it takes to get that far in a
//! container: the engine's own last steps, the init process, and giving things up. The container is started under a
//! profile of both, so what neither names is out of reach from the first instruction on.

use serde_json::{Value, json};

/// A system call by its name and number.
type Named = (&'static str, i64);

macro_rules! named {
    ($($(#[$condition:meta])* $call:ident,)*) => {
        &[$($(#[$condition])* (stringify!($call), libc::$call),)*]
    };
}

/// Reading files, memory, time, and dying.
pub(crate) const INSIDE: &[Named] = named![
    SYS_read,
    SYS_pread64,
    SYS_readv,
    SYS_write,
    SYS_writev,
    SYS_close,
    SYS_lseek,
    SYS_openat,
    SYS_openat2,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_getdents64,
    SYS_readlinkat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fcntl,
    SYS_dup,
    SYS_getcwd,
    SYS_fstatfs,
    SYS_fadvise64,
    SYS_munmap,
    SYS_mremap,
    SYS_brk,
    SYS_madvise,
    SYS_futex,
    SYS_sigaltstack,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_getrandom,
    SYS_sched_yield,
    SYS_getpid,
    SYS_gettid,
    SYS_getuid,
    SYS_tgkill,
    SYS_restart_syscall,
    SYS_exit,
    SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    SYS_stat,
    #[cfg(target_arch = "x86_64")]
    SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    SYS_readlink,
];

/// What the engine, the init process and the runner need until the runner has locked itself up.
const STARTING: &[Named] = named![
    // New memory may hold code only until then.
    SYS_mmap,
    SYS_mprotect,
    SYS_execve,
    SYS_set_tid_address,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_prlimit64,
    SYS_prctl,
    SYS_capget,
    SYS_capset,
    SYS_sched_getaffinity,
    SYS_statfs,
    SYS_uname,
    SYS_close_range,
    SYS_ppoll,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_pipe2,
    SYS_dup3,
    SYS_getppid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_kill,
    SYS_setpgid,
    SYS_getpgid,
    SYS_wait4,
    SYS_waitid,
    SYS_rt_sigtimedwait,
    SYS_seccomp,
    SYS_landlock_create_ruleset,
    SYS_landlock_add_rule,
    SYS_landlock_restrict_self,
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    SYS_access,
    #[cfg(target_arch = "x86_64")]
    SYS_open,
    #[cfg(target_arch = "x86_64")]
    SYS_poll,
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    SYS_getpgrp,
    #[cfg(target_arch = "x86_64")]
    SYS_fork,
    #[cfg(target_arch = "x86_64")]
    SYS_vfork,
];

/// Every flag with which `clone` makes a namespace.
const NEW_NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// The profile of a container, as the engine's API takes it: an allow-list, everything else is "operation not
/// permitted". Other architectures of the same processor are not listed, so their calls kill.
#[must_use]
pub fn profile() -> String {
    let names: Vec<&str> =
        INSIDE.iter().chain(STARTING).map(|(name, _)| name.strip_prefix("SYS_").unwrap_or(name)).collect();
    let argument = |index: u32, value: u64, value_two: u64, operation: &str| json!({"index": index, "value": value, "valueTwo": value_two, "op": operation});
    let namespaces = u64::from(NEW_NAMESPACES.unsigned_abs());
    let set_foreground = libc::TIOCSPGRP;
    let rules: [Value; 4] = [
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        // The init process starts the runner, and the engine's own program has threads.
        json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [argument(0, namespaces, 0, "SCMP_CMP_MASKED_EQ")]}),
        // Its flags lie in memory, where a filter cannot look; "not implemented" makes libraries use `clone`.
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
        // The init process puts the runner into the foreground, or gives up.
        json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [argument(1, set_foreground, 0, "SCMP_CMP_EQ")]}),
    ];
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        _ => "SCMP_ARCH_X86_64",
    };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture],
        "syscalls": rules,
    });
    profile.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_allows_what_is_listed_and_nothing_that_leads_out() {
        let profile: Value = serde_json::from_str(&profile()).unwrap();
        let allowed = profile["syscalls"][0]["names"].as_array().unwrap();
        let allows = |name: &str| allowed.iter().any(|allowed| allowed == name);
        for name in ["read", "openat2", "execve", "landlock_restrict_self", "seccomp"] {
            assert!(allows(name), "{name}");
        }
        for name in [
            "socket",
            "connect",
            "mount",
            "unshare",
            "setns",
            "ptrace",
            "process_vm_readv",
            "bpf",
            "io_uring_setup",
            "keyctl",
            "userfaultfd",
            "perf_event_open",
            "memfd_create",
            "execveat",
            "clone",
            "clone3",
            "ioctl",
            "chmod",
            "unlink",
            "mknod",
            "symlink",
            "link",
            "rename",
            "setuid",
            "personality",
            "open_by_handle_at",
        ] {
            assert!(!allows(name), "{name}");
        }
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(profile["architectures"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_call_stands_in_one_list_only() {
        assert!(STARTING.iter().all(|call| !INSIDE.contains(call)));
    }
}
