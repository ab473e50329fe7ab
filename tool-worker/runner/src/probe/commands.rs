//! What must be refused in a box for commands: the same as in any box, but for what a program of its own may do.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::ONLY_LANDLOCK;
use super::attempts::{self, Group, KERNEL, NAMESPACES, NETWORK, PRIVILEGES, PROCESSES, PROGRAMS, refused};
use crate::RUNNER;

/// All of them.
pub(super) const GROUPS: &[Group] = &[
    ("files", files),
    ("writes", writes),
    ("devices", || forbidden(attempts::devices())),
    ("descriptors", attempts::descriptors),
    ("environment", attempts::environment),
    ("network", network),
    ("namespaces", || refused(NAMESPACES)),
    ("processes", || forbidden(refused(PROCESSES))),
    ("kernel", || forbidden(refused(KERNEL))),
    ("privileges", || forbidden(refused(PRIVILEGES))),
    ("programs", programs),
];

/// What a command may ask the kernel for: processes, sessions and limits of its own, code in memory, modes of its files, a
/// pair of connected streams, the null device.
const ALLOWED: [&str; 10] = [
    "clone",
    "setsid",
    "prlimit64",
    "pidfd_open",
    "executable memory",
    "prctl dumpable",
    "chmod",
    "socketpair",
    "sendto",
    "kill",
];

fn forbidden(open: Vec<String>) -> Vec<String> {
    open.into_iter().filter(|name| !ALLOWED.contains(&name.as_str())).collect()
}

fn files() -> Vec<String> {
    let paths = [
        "/etc/shadow",
        "/etc/gshadow",
        "/root",
        "/home",
        "/proc/kcore",
        "/proc/1/root/etc/shadow",
        "/sys/kernel",
        "/sys/fs/cgroup",
        "/var/run/docker.sock",
        "/run/docker.sock",
    ];
    let open = paths.iter().filter(|path| fs::File::open(path).is_ok()).map(|path| format!("read {path}"));
    let only_landlock = ["/", "/workspace/..", "/proc/1/environ"];
    let open_too = only_landlock.iter().filter(|path| fs::read(path).is_ok() || fs::read_dir(path).is_ok());
    open.chain(open_too.map(|path| format!("{ONLY_LANDLOCK}read {path}"))).collect()
}

fn writes() -> Vec<String> {
    let may = |path: &&&str| fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).is_ok();
    let paths = [
        "/probe",
        "/box/probe",
        "/usr/probe",
        "/usr/bin/env",
        "/etc/probe",
        RUNNER,
        "/dev/mqueue/probe",
        "/proc/self/uid_map",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger",
        "/sys/fs/cgroup/cgroup.procs",
    ];
    let only_landlock = ["/proc/self/oom_score_adj", "/dev/shm/probe"];
    let open = paths.iter().filter(may).map(|path| format!("write {path}"));
    open.chain(only_landlock.iter().filter(may).map(|path| format!("{ONLY_LANDLOCK}write {path}"))).collect()
}

fn network() -> Vec<String> {
    let mut open = forbidden(refused(NETWORK));
    open.extend(refused(&[
        ("socketpair of datagrams", libc::SYS_socketpair, [libc::AF_UNIX as i64, libc::SOCK_DGRAM as i64, 0, 0, 0]),
        (
            "socketpair of another family",
            libc::SYS_socketpair,
            [libc::AF_INET as i64, libc::SOCK_STREAM as i64, 0, 0, 0],
        ),
    ]));
    open
}

/// Running what was just written, or what has no name.
fn programs() -> Vec<String> {
    let unnamed = refused(PROGRAMS).into_iter().filter(|name| name != "execve");
    let copy = "/tmp/program";
    let written = fs::copy(RUNNER, copy).and_then(|_| fs::set_permissions(copy, fs::Permissions::from_mode(0o755)));
    let ran = written.and_then(|()| Command::new(copy).status());
    let refused = matches!(&ran, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    let _ = fs::remove_file(copy);
    unnamed.chain((!refused).then(|| format!("{ONLY_LANDLOCK}run {copy}: {ran:?}"))).collect()
}
