//! One table of attacks, tried against every tier from inside its boxes: each has an expected end, the next call works,
//! and nothing is left. No attack runs outside a box: the runner that carries it out refuses to run anywhere else.

#![expect(unreachable_pub, reason = "the module is shared by several test programs")]

mod boxes;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use boxes::{TIERS, call, config, no_traces_but, start, traces, workspace};
use runtime::clock;
use schemas::fact::FailureClass;
use serde_json::json;
use tool_worker::sandbox::{Access, Choice, Place, Surroundings};
use tool_worker::{Executor, Failure};

/// What should come of an attack.
enum End {
    /// Every attempt was refused.
    Closed,
    /// Every attempt was refused, or the box was stopped at the first.
    ClosedOrStopped(&'static [&'static str]),
    /// The runner says one of these and goes on.
    Says(&'static [&'static str]),
    /// The box is stopped, with one of these reasons.
    Stopped(FailureClass, &'static [&'static str]),
}
use End::{Closed, ClosedOrStopped, Says, Stopped};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(700);

const TOO_MUCH_MEMORY: &[&str] = &["the tool used more memory than it may and was stopped"];
const TOO_MUCH_OUTPUT: &[&str] = &["the tool wrote more than"];
const TOO_LONG: &[&str] = &["the tool took longer than"];
const FORBIDDEN: &[&str] = &["the tool made a system call that no tool may make", "the sandbox ended with code 139"];
const NO_PROCESS: &[&str] = &["after 0: not permitted", "after 0: no more processes"];
const NO_SPACE: &[&str] = &["no access", "no space", "Read-only file system", "No such file", "not permitted"];

/// Attacks on a box: what the runner is asked to do, how long it may, what must come of it.
type Attacks = &'static [(&'static str, Duration, End)];

/// What must come of it in a box of either kind.
const ATTACKS: Attacks = &[
    ("files", LONG, Closed),
    ("writes", LONG, Closed),
    ("devices", LONG, Closed),
    ("descriptors", LONG, Closed),
    ("environment", LONG, Closed),
    ("network", LONG, Closed),
    ("namespaces", LONG, Closed),
    ("processes", LONG, Closed),
    ("kernel", LONG, Closed),
    ("privileges", LONG, Closed),
    ("programs", LONG, Closed),
    ("foreign calls", LONG, ClosedOrStopped(FORBIDDEN)),
    ("int80", LONG, ClosedOrStopped(FORBIDDEN)),
    ("loop", SHORT, Stopped(FailureClass::Timeout, TOO_LONG)),
    ("wait", SHORT, Stopped(FailureClass::Timeout, TOO_LONG)),
    ("allocate", LONG, Stopped(FailureClass::Refused, TOO_MUCH_MEMORY)),
    ("allocate slowly", LONG, Stopped(FailureClass::Refused, TOO_MUCH_MEMORY)),
    ("flood", LONG, Stopped(FailureClass::Refused, TOO_MUCH_OUTPUT)),
    ("complain", LONG, Stopped(FailureClass::Refused, TOO_MUCH_OUTPUT)),
    ("nonsense", LONG, Stopped(FailureClass::Internal, &["the sandbox answered nonsense"])),
    ("crash", LONG, Stopped(FailureClass::Internal, &["the tool crashed"])),
    ("overflow the stack", LONG, Stopped(FailureClass::Internal, &["the sandbox ended with code 13"])),
];

/// In a box for a built-in tool, which may have no process beside it and writes nowhere.
const ATTACKS_BY_TOOLS: Attacks = &[
    ("odd text", LONG, Says(&["\u{1b}[31m\0"])),
    ("fork bomb", LONG, Says(NO_PROCESS)),
    ("zombies", LONG, Says(NO_PROCESS)),
    ("daemonise", LONG, Says(NO_PROCESS)),
    ("fill", LONG, Says(NO_SPACE)),
    ("many files", LONG, Says(NO_SPACE)),
    ("many descriptors", LONG, Says(&["too many files after few"])),
];

/// The same for a container whose runner gives nothing up: each of its own walls holds alone.
const ATTACKS_ON_A_CONTAINER: Attacks = &[
    ("devices", LONG, Closed),
    ("descriptors", LONG, Closed),
    ("environment", LONG, Closed),
    ("network", LONG, Closed),
    ("namespaces", LONG, Closed),
    ("foreign calls", LONG, ClosedOrStopped(FORBIDDEN)),
    ("kernel", LONG, Says(&["executable memory"])),
    ("int80", LONG, ClosedOrStopped(FORBIDDEN)),
    ("wait", SHORT, Stopped(FailureClass::Timeout, TOO_LONG)),
    ("allocate slowly", LONG, Stopped(FailureClass::Refused, TOO_MUCH_MEMORY)),
    ("flood", LONG, Stopped(FailureClass::Refused, TOO_MUCH_OUTPUT)),
    ("fork bomb", LONG, Says(&["after 4", "after 5", "after 6"])),
    ("zombies", LONG, Says(&["after 4", "after 5", "after 6"])),
    ("daemonise", LONG, Says(&["a child is at large"])),
    ("fill", LONG, Stopped(FailureClass::Refused, &["the tool wrote a larger file than it may"])),
    ("many files", LONG, Says(&["no space"])),
];

/// In a box for commands, which may have processes and a place to write: bounded, and nowhere else.
const ATTACKS_BY_COMMANDS: Attacks = &[
    ("fork bomb", LONG, Says(&["after 12", "after 13"])),
    ("zombies", LONG, Says(&["after 12", "after 13"])),
    ("daemonise", LONG, Says(&["a child is at large"])),
    ("fill", LONG, Stopped(FailureClass::Refused, &["the tool wrote a larger file than it may"])),
    ("many files", LONG, Says(&["no space", "made 20000"])),
    ("many descriptors", LONG, Says(&["too many files after many"])),
];

fn check(tier: &str, attack: &str, end: &End, came: Result<String, Failure>) {
    match (end, came) {
        (Closed, Ok(open)) => assert_eq!(open, "", "{attack} through {tier} is open"),
        (ClosedOrStopped(_), Ok(open)) => assert_eq!(open, "", "{attack} through {tier} is open"),
        (Says(expected), Ok(said)) => {
            assert!(expected.iter().any(|text| said.starts_with(text)), "{attack} through {tier}: {said}");
        }
        (ClosedOrStopped(expected), Err(failure)) => {
            assert!(expected.iter().any(|text| failure.detail.starts_with(text)), "{attack} through {tier}: {failure}");
        }
        (Stopped(class, expected), Err(failure)) => {
            assert_eq!(failure.class, *class, "{attack} through {tier}: {failure}");
            let told = expected.iter().any(|text| failure.detail.starts_with(text));
            assert!(told, "{attack} through {tier}: {failure}");
        }
        (_, came) => panic!("{attack} through {tier}: {came:?}"),
    }
}

/// The call after an attack, by another box.
async fn works(executor: &Executor, after: &str) {
    let read = executor.execute(&call("read_file", json!({"path": "a.rs", "start": 2}))).await;
    assert_eq!(read.result.as_deref(), Ok("2: fn open_store() {}"), "after {after}");
}

/// What a command of these tests has around itself.
fn surroundings(workspace: &Path) -> Surroundings {
    let limits = tool_worker::config::Commands::default().limits();
    Surroundings { workspace: Some((Place::at(workspace).unwrap(), Access::Read)), reads: vec![], image: None, limits }
}

/// Processes of this machine.
fn running() -> usize {
    let number = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(number).count()
}

async fn all_attacks(tier: Choice) {
    let base = workspace();
    let before = traces().await;
    let Some(executor) = start(&config(tier, base.path())).await else { return };
    let sandbox = executor.sandbox().unwrap();
    for (attack, timeout, end) in ATTACKS.iter().chain(ATTACKS_BY_TOOLS) {
        let started = clock::instant();
        let came = sandbox.probe(base.path(), attack, *timeout).await;
        println!("{} {attack}: {:?}", sandbox.tier(), clock::instant().duration_since(started));
        check(sandbox.tier(), attack, end, came);
        works(&executor, attack).await;
    }
    if tier == Choice::Docker {
        for (attack, timeout, end) in ATTACKS_ON_A_CONTAINER {
            let came = sandbox.probe_container(base.path(), attack, *timeout).await;
            check("a container alone", attack, end, came);
        }
        works(&executor, "attacks on a container").await;
    }
    let surroundings = surroundings(base.path());
    let processes = running();
    for (attack, timeout, end) in ATTACKS.iter().chain(ATTACKS_BY_COMMANDS) {
        let started = clock::instant();
        let came = sandbox.probe_command(&surroundings, attack, *timeout).await;
        println!("{} command {attack}: {:?}", sandbox.tier(), clock::instant().duration_since(started));
        check(&format!("a command in {}", sandbox.tier()), attack, end, came);
        works(&executor, attack).await;
    }
    // Other tests have boxes as well; a bomb has more than a hundred processes.
    let gone = async {
        while running() >= processes + 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("nothing is left of bombs");
    assert_eq!(std::fs::read(base.path().join("canary")).unwrap(), b"canary");
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 2, "nothing was made");
    sandbox.close().await;
    drop(executor);
    no_traces_but(&before).await;
}

#[tokio::test]
async fn no_attack_gets_out_of_bubblewrap() {
    Box::pin(all_attacks(Choice::Bubblewrap)).await;
}

#[tokio::test]
async fn no_attack_gets_out_of_a_container() {
    Box::pin(all_attacks(Choice::Docker)).await;
}

#[tokio::test]
async fn hostile_paths_and_names_are_refused_or_just_names() {
    for tier in TIERS {
        let base = workspace();
        let Some(executor) = start(&config(tier, base.path())).await else { continue };
        symlink("/etc", base.path().join("etc")).unwrap();
        symlink("/proc/self/root", base.path().join("root")).unwrap();
        symlink("/proc/self/fd/0", base.path().join("descriptor")).unwrap();
        symlink("loop", base.path().join("loop")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, base.path().join("pipe"), rustix::fs::FileType::Fifo, 0o644.into(), 0)
            .unwrap();
        let long = "a/".repeat(3_000);
        for path in [
            "../../etc/passwd",
            "/etc/passwd",
            "etc/passwd",
            "root/etc/passwd",
            "descriptor",
            "/proc/self/root/etc/passwd",
            "/proc/self/fd/0",
            "/dev/mem",
            "pipe",
            "..",
            "a.rs/../../etc/passwd",
            "a\0b",
            &long,
        ] {
            let read = executor.execute(&call("read_file", json!({"path": path}))).await;
            let failure = read.result.unwrap_err();
            assert!(
                matches!(failure.class, FailureClass::Refused | FailureClass::BadRequest),
                "{path} through {tier:?}: {failure}"
            );
        }
        for name in ["new\nline", "-rf", "\u{202e}txt.exe", "..%2fa", "$(id)", "spa ce", "%s%n"] {
            std::fs::write(base.path().join(name), "just a name\n").unwrap();
            let read = executor.execute(&call("read_file", json!({"path": name}))).await;
            assert_eq!(read.result.as_deref(), Ok("1: just a name"), "{name:?} through {tier:?}");
        }
        let found = executor.execute(&call("search_code", json!({"query": "root:", "path": "etc"}))).await;
        assert!(!format!("{:?}", found.result).contains("root:x"), "{found:?}");
        let huge = call("read_file", json!({"path": "a".repeat(200_000)}));
        let failure = executor.execute(&huge).await.result.unwrap_err();
        assert_eq!(failure.class, FailureClass::BadRequest, "{failure}");
        works(&executor, "hostile names").await;
        executor.sandbox().unwrap().close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_that_changes_under_a_call_leads_nowhere() {
    for tier in TIERS {
        let base = workspace();
        let Some(executor) = start(&config(tier, base.path())).await else { continue };
        let outside = workspace();
        std::fs::create_dir(base.path().join("a")).unwrap();
        std::fs::write(base.path().join("a/f"), "inside\n").unwrap();
        std::fs::write(outside.path().join("f"), "outside\n").unwrap();
        symlink(outside.path(), base.path().join("evil")).unwrap();
        let stop = AtomicBool::new(false);
        let swap = |path: &Path| {
            while !stop.load(Ordering::Relaxed) {
                std::fs::rename(path.join("a"), path.join("kept")).unwrap();
                std::fs::rename(path.join("evil"), path.join("a")).unwrap();
                std::fs::rename(path.join("a"), path.join("evil")).unwrap();
                std::fs::rename(path.join("kept"), path.join("a")).unwrap();
            }
        };
        let calls = async {
            for _ in 0..30 {
                let read = executor.execute(&call("read_file", json!({"path": "a/f"}))).await;
                assert!(!matches!(&read.result, Ok(text) if text != "1: inside"), "{read:?}");
                let found = executor.execute(&call("search_code", json!({"query": "outside"}))).await;
                assert!(!format!("{:?}", found.result).contains("f:1"), "{found:?}");
            }
            stop.store(true, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| swap(base.path()));
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(calls));
        });
        executor.sandbox().unwrap().close().await;
    }
}

#[tokio::test]
async fn a_box_shows_the_directory_that_is_there_now() {
    for tier in TIERS {
        let base = workspace();
        let name = base.path().join("work");
        let fill = |text: &str| {
            std::fs::create_dir(&name).unwrap();
            std::fs::write(name.join("a.rs"), text).unwrap();
        };
        fill("old\n");
        let Some(executor) = start(&config(tier, base.path())).await else { continue };
        let mut read = call("read_file", json!({"path": "a.rs"}));
        read.workspace = Some("work".to_owned());
        assert_eq!(executor.execute(&read).await.result.as_deref(), Ok("1: old"));
        let sandbox = executor.sandbox().unwrap();
        let warm = async {
            while sandbox.waiting() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, warm).await.expect("a box is prepared");
        std::fs::rename(&name, base.path().join("gone")).unwrap();
        fill("new\n");
        assert_eq!(executor.execute(&read).await.result.as_deref(), Ok("1: new"), "{tier:?}");
        sandbox.close().await;
    }
}
