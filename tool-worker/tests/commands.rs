//! Real programs in boxes for commands, in every tier: what they may do, where they are stopped, and that all of them is
//! gone then. `VLINDERS_TEST_RUNAWAYS` sets how many are let run away.

#![expect(unreachable_pub, reason = "the module is shared by several test programs")]
#![expect(dead_code, reason = "the module is shared by several test programs, and each uses a part")]

mod boxes;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use boxes::{TIERS, config, no_traces_but, start, traces, workspace};
use runtime::clock;
use schemas::fact::FailureClass;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tool_runner::message::Command;
use tool_worker::sandbox::{Access, Choice, End, Finished, Limits, Place, Surroundings};
use tool_worker::{Executor, Failure, Sandbox};

const LONG: Duration = Duration::from_secs(60);
const OUTPUT: usize = 1 << 20;
/// How long after its limit a runaway and all its descendants may be there.
const GONE_WITHIN: Duration = Duration::from_millis(500);
/// Runaways of each tier unless the environment says otherwise.
const RUNAWAYS: usize = 10;

fn limits() -> Limits {
    tool_worker::config::Commands::default().limits()
}

fn around(workspace: &Path, access: Access) -> Surroundings {
    Surroundings {
        workspace: Some((Place::at(workspace).unwrap(), access)),
        reads: vec![],
        image: None,
        limits: limits(),
    }
}

fn command(argv: &[&str]) -> Command {
    Command { argv: argv.iter().map(|word| (*word).to_owned()).collect(), ..Command::default() }
}

fn shell(script: &str) -> Command {
    command(&["sh", "-c", script])
}

async fn run(sandbox: &Sandbox, surroundings: &Surroundings, command: Command) -> Result<Finished, Failure> {
    sandbox.command(surroundings, command, b"", LONG, OUTPUT).await
}

fn text(finished: &Finished) -> String {
    format!("{}{}", String::from_utf8_lossy(&finished.stdout), String::from_utf8_lossy(&finished.stderr))
}

/// Every tier that can run commands here. One that cannot says why, and must be able where `CI` says so.
async fn each(mut test: impl AsyncFnMut(Choice, &Executor, &Path)) {
    for tier in TIERS {
        let base = workspace();
        let before = traces().await;
        let Some(executor) = start(&config(tier, base.path())).await else { continue };
        match executor.sandbox().unwrap().for_commands() {
            Ok(_) => test(tier, &executor, base.path()).await,
            Err(reason) => {
                assert!(!boxes::in_ci(), "{tier:?}: {reason}");
                eprintln!("SKIPPED: {tier:?} runs no commands here: {reason}");
            }
        }
        executor.sandbox().unwrap().close().await;
        drop(executor);
        no_traces_but(&before).await;
    }
}

#[tokio::test]
async fn a_command_reads_its_input_and_is_told_by_what_it_says_and_how_it_ends() {
    each(async |tier, executor, base| {
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let script = shell("cat; pwd; cat a.rs; echo trouble >&2; exit 3");
        let finished = sandbox.command(&here, script, b"given\n", LONG, OUTPUT).await.unwrap();
        assert_eq!(finished.end, End::Exited(3), "{tier:?}");
        assert_eq!(
            String::from_utf8_lossy(&finished.stdout),
            "given\n/workspace\nuse std::fs;\nfn open_store() {}\n",
            "{tier:?}"
        );
        assert_eq!(finished.stderr, b"trouble\n");
        let killed = run(sandbox, &here, shell("kill -9 $$")).await.unwrap();
        assert_eq!(killed.end, End::Exited(137), "{tier:?}");
        let missing = run(sandbox, &here, command(&["no-such-program"])).await.unwrap();
        assert_eq!((missing.end, text(&missing).as_str()), (End::Exited(127), "no such program: no-such-program\n"));
        let nowhere = Command { directory: "nowhere".into(), ..command(&["true"]) };
        let nowhere = run(sandbox, &here, nowhere).await.unwrap();
        assert_eq!((nowhere.end, text(&nowhere).as_str()), (End::Exited(126), "no such directory: nowhere\n"));
        let variables = BTreeMap::from([("GREETING".to_owned(), "hello $HOME".to_owned())]);
        let greeting = Command { environment: variables, ..command(&["printenv", "GREETING", "HOME"]) };
        assert_eq!(text(&run(sandbox, &here, greeting).await.unwrap()), "hello $HOME\n/tmp\n");
    })
    .await;
}

#[tokio::test]
async fn a_command_has_no_privileges_and_sees_nothing_of_people() {
    each(async |tier, executor, base| {
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let status = text(&run(sandbox, &here, command(&["cat", "/proc/self/status"])).await.unwrap());
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        for (name, value) in [
            ("NoNewPrivs:", "1"),
            ("Seccomp:", "2"),
            ("CapEff:", "0000000000000000"),
            ("CapPrm:", "0000000000000000"),
            ("CapBnd:", "0000000000000000"),
            ("CapAmb:", "0000000000000000"),
        ] {
            assert_eq!(field(name), Some(value), "{tier:?}");
        }
        assert_ne!(field("Uid:").unwrap().split_whitespace().next(), Some("0"), "{tier:?}");
        let seen = text(
            &run(
                sandbox,
                &here,
                shell("for place in /root /home /etc/passwd /etc/shadow /sys/kernel; do ls $place >/dev/null 2>&1 && echo $place; done; ls /proc | grep -c '^[0-9]'"),
            )
            .await
            .unwrap(),
        );
        let processes: usize = seen.trim().parse().unwrap_or_else(|_| panic!("{tier:?} shows {seen}"));
        assert!(processes <= 6, "{tier:?} shows {processes} processes");
        let variables = text(&run(sandbox, &here, command(&["env"])).await.unwrap());
        let mut names: Vec<&str> = variables.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "LANG", "PATH", "TMPDIR"], "{tier:?}");
        // Programs that are somebody else's when they run are not, here.
        let asked = run(sandbox, &here, shell("su -c id || mount -t tmpfs none /tmp")).await.unwrap();
        assert_ne!(asked.end, End::Exited(0), "{tier:?}: {}", text(&asked));
    })
    .await;
}

#[tokio::test]
async fn a_command_has_processes_threads_and_pipes_but_no_network() {
    each(async |tier, executor, base| {
        if !Path::new("/usr/bin/python3").exists() {
            assert!(!boxes::in_ci(), "python3 is missing");
            eprintln!("SKIPPED: there is no /usr/bin/python3");
            return;
        }
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let program = r##"
import asyncio, os, socket, subprocess, threading
done = []
threads = [threading.Thread(target=lambda: done.append(1)) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
async def main():
    process = await asyncio.create_subprocess_exec("echo", "from a child", stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode().strip()
print(len(done), asyncio.run(main()), subprocess.run(["ls"], capture_output=True).stdout.decode().split())
def attempt(name, what):
    try:
        what()
        print(name, "OPEN")
    except OSError as error:
        print(name, error.errno)
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", 22), 1))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("169.254.169.254", 80)))
attempt("dns", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0docker"))
attempt("datagrams", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("memfd", lambda: os.memfd_create("x"))
attempt("exec", lambda: (open("/tmp/x", "w").write("#!/bin/sh\n"), os.chmod("/tmp/x", 0o755), os.execv("/tmp/x", ["x"])))
"##;
        let finished = run(sandbox, &here, command(&["/usr/bin/python3", "-c", program])).await.unwrap();
        assert_eq!(
            text(&finished),
            "8 from a child ['a.rs', 'canary']\ntcp 1\nudp 1\ndns 1\nabstract 1\ndatagrams 1\nmemfd 1\nexec 13\n",
            "{tier:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_workspace_is_read_only_unless_it_was_given_to_write() {
    each(async |tier, executor, base| {
        let sandbox = executor.sandbox().unwrap();
        let script = || shell("echo new > made.txt; rm -f canary; mkdir sub; echo into > /tmp/t && cat /tmp/t");
        let refused = text(&run(sandbox, &around(base, Access::Read), script()).await.unwrap());
        assert!(
            refused.contains("into") && !base.join("made.txt").exists() && base.join("canary").exists(),
            "{refused}"
        );
        assert!(refused.contains("denied") || refused.contains("Read-only"), "{tier:?}: {refused}");
        if rustix::process::geteuid().is_root() {
            let of_root = run(sandbox, &around(base, Access::Write), script()).await.unwrap_err();
            assert_eq!(of_root.class, FailureClass::Refused);
            assert!(of_root.detail.contains("belongs to root, and no command runs as root"), "{of_root}");
            std::os::unix::fs::chown(base, Some(1234), Some(1234)).unwrap();
        }
        let written = text(&run(sandbox, &around(base, Access::Write), script()).await.unwrap());
        assert_eq!(written, "into\n", "{tier:?}");
        assert_eq!(std::fs::read(base.join("made.txt")).unwrap(), b"new\n");
        assert!(!base.join("canary").exists() && base.join("sub").is_dir());
        assert_eq!(base.join("made.txt").metadata().unwrap().uid(), base.metadata().unwrap().uid());
        let link =
            "ln -s /etc/passwd link && cat link; ln /usr/bin/env hard; mkfifo pipe && ls pipe; mknod device c 1 3";
        let tried = text(&run(sandbox, &around(base, Access::Write), shell(link)).await.unwrap());
        assert!(tried.contains("pipe\n") && !tried.contains("root:"), "{tier:?}: {tried}");
        assert!(!base.join("hard").exists() && !base.join("device").exists(), "{tier:?}: {tried}");
        std::fs::remove_file(base.join("link")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn memory_output_files_and_processes_are_bounded() {
    each(async |tier, executor, base| {
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let hog = run(sandbox, &here, shell("head -c 900m /dev/zero | tail | wc -c")).await.unwrap();
        assert_eq!(hog.end, End::OutOfMemory, "{tier:?}: {hog:?}");
        let flood = run(sandbox, &here, command(&["yes"])).await.unwrap();
        assert_eq!((flood.end, flood.stdout.len()), (End::TooMuchOutput, OUTPUT), "{tier:?}");
        let complaint = run(sandbox, &here, shell("yes >&2")).await.unwrap();
        assert_eq!((complaint.end, complaint.stderr.len()), (End::TooMuchOutput, OUTPUT / 4), "{tier:?}");
        let full =
            run(sandbox, &here, shell("for i in 1 2 3 4; do head -c 30m /dev/zero > /tmp/$i; done")).await.unwrap();
        assert!(text(&full).contains("No space left on device"), "{tier:?}: {}", text(&full));
        let large = run(sandbox, &here, shell("trap '' XFSZ; head -c 80m /dev/zero > /tmp/x")).await.unwrap();
        assert!(text(&large).contains("too large") || text(&large).contains("No space"), "{tier:?}: {}", text(&large));
        let bomb = "i=0; while [ $i -lt 400 ]; do sleep 30 & i=$((i+1)); done; echo made $i";
        let bomb = sandbox.command(&here, shell(bomb), b"", Duration::from_secs(5), OUTPUT).await.unwrap();
        assert!(!text(&bomb).contains("made 400"), "{tier:?}: {}", text(&bomb));
        assert!(text(&bomb).to_lowercase().contains("fork"), "{tier:?}: {}", text(&bomb));
        assert_eq!(text(&run(sandbox, &here, command(&["echo", "on"])).await.unwrap()), "on\n", "{tier:?}");
    })
    .await;
}

#[tokio::test]
async fn absurd_orders_are_refused_or_are_just_words() {
    each(async |tier, executor, base| {
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let long = "x".repeat(200_000);
        let refused = run(sandbox, &here, command(&["echo", &long])).await;
        let refused = refused.map(|finished| text(&finished));
        assert!(matches!(&refused, Ok(said) if said.contains("Argument list too long")), "{tier:?}: {refused:?}");
        let many: Vec<&str> = std::iter::repeat_n("a", 30_000).collect();
        let finished = run(sandbox, &here, command(&[&["echo"], &many[..]].concat())).await.unwrap();
        assert_eq!(finished.stdout.len(), 60_000, "{tier:?}");
        let words = ["printf", "%s|", "$(id)", "; rm -rf /", "-rf", "\u{202e}txt", "new\nline", "`x`"];
        let said = text(&run(sandbox, &here, command(&words)).await.unwrap());
        assert_eq!(said, words[2..].iter().map(|word| format!("{word}|")).collect::<String>(), "{tier:?}");
        let nothing = run(sandbox, &here, command(&[])).await.unwrap_err();
        assert_eq!(nothing.detail, "nothing was run: there is no program to run", "{tier:?}");
        // A directory that has taken the name of the one that was allowed.
        let moved = base.join("moved");
        std::fs::create_dir(&moved).unwrap();
        let there = around(&moved, Access::Read);
        std::fs::rename(&moved, base.join("gone")).unwrap();
        std::os::unix::fs::symlink("/usr", &moved).unwrap();
        let another = run(sandbox, &there, command(&["ls"])).await.unwrap_err();
        assert_eq!(another.class, FailureClass::Refused, "{tier:?}: {another}");
        assert!(another.detail.contains("no longer the directory that was allowed"), "{tier:?}: {another}");
        std::fs::remove_file(&moved).unwrap();
        std::fs::remove_dir(base.join("gone")).unwrap();
        let nul = run(sandbox, &here, command(&["echo", "a\0b"])).await.unwrap();
        assert_eq!(nul.end, End::Exited(126), "{tier:?}: {}", text(&nul));
        let beyond = Command { directory: "../../..".into(), ..command(&["cat", "etc/shadow"]) };
        assert_ne!(run(sandbox, &here, beyond).await.unwrap().end, End::Exited(0), "{tier:?}");
        let shown = Surroundings { reads: vec!["/proc".into()], ..here.clone() };
        let refused = run(sandbox, &shown, command(&["true"])).await.unwrap_err();
        assert!(refused.detail.contains("cannot be shown in a box"), "{refused}");
        let image = Surroundings { image: Some("vlinders/no-such-image".into()), ..here.clone() };
        let refused = run(sandbox, &image, command(&["true"])).await.unwrap_err();
        assert!(refused.detail.contains("image vlinders/no-such-image"), "{tier:?}: {refused}");
    })
    .await;
}

#[tokio::test]
async fn a_command_that_goes_on_answers_in_turn_and_ends_with_its_connection() {
    each(async |tier, executor, base| {
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let marker = marker();
        let script = shell(&format!("sleep {marker} & echo complaint >&2; while read line; do echo \"< $line\"; done"));
        let connected = sandbox.connect(&here, script).await.unwrap();
        let (complained, complaints) = std::sync::mpsc::channel();
        let (mut input, mut output, hold) = connected.split(move |bytes| drop(complained.send(bytes.to_vec())));
        for said in ["one", "two"] {
            input.write_all(format!("{said}\n").as_bytes()).await.unwrap();
            input.flush().await.unwrap();
            let mut answer = vec![0; said.len() + 3];
            tokio::time::timeout(LONG, output.read_exact(&mut answer)).await.unwrap().unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), format!("< {said}\n"), "{tier:?}");
        }
        assert_eq!(complaints.try_recv().unwrap(), b"complaint\n");
        drop(hold);
        tokio::time::timeout(LONG, gone(&marker)).await.expect("it ends with its connection");
    })
    .await;
}

/// A number of seconds to sleep that nobody else sleeps.
fn marker() -> String {
    format!("{}.{}", 90_000 + std::process::id() % 10_000, clock::now() % 1_000_000_000)
}

/// Processes that have this word on their command line, whatever became of their parents.
fn alive(marker: &str) -> usize {
    let has = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == marker.as_bytes())
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(has).filter(|has| *has).count()
}

async fn gone(marker: &str) {
    while alive(marker) > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a test may take is said in the environment")]
fn runaways() -> usize {
    std::env::var("VLINDERS_TEST_RUNAWAYS").ok().and_then(|runaways| runaways.parse().ok()).unwrap_or(RUNAWAYS)
}

#[tokio::test]
async fn a_runaway_is_gone_with_all_its_descendants_soon_after_its_limit() {
    each(async |tier, executor, base| {
        let (sandbox, here) = (executor.sandbox().unwrap(), around(base, Access::Read));
        let (mut slowest, limit) = (Duration::ZERO, Duration::from_millis(300));
        for _ in 0..runaways() {
            let marker = marker();
            // Children that ignore signals, daemons in sessions of their own, one that is stopped, and busy loops.
            let script = format!(
                "trap '' TERM INT HUP; sleep {marker} & setsid sh -c 'sleep {marker} & sleep {marker}' & \
                 (setsid sleep {marker} &) ; sh -c 'kill -STOP $$; sleep {marker}' & \
                 while :; do :; done & while :; do :; done"
            );
            let finished = sandbox.command(&here, shell(&script), b"", limit, OUTPUT).await.unwrap();
            let stopped = clock::instant();
            assert_eq!(finished.end, End::TimedOut, "{tier:?}");
            tokio::time::timeout(LONG, gone(&marker)).await.expect("they end");
            slowest = slowest.max(stopped.elapsed());
        }
        println!("{tier:?}: {} runaways, the slowest gone {slowest:?} after the result", runaways());
        // A busy machine may take longer; the benchmark of tools measures it on an idle one.
        assert!(slowest < GONE_WITHIN * 10, "{tier:?}: {slowest:?}");
    })
    .await;
}

#[tokio::test]
async fn a_spawner_that_dies_takes_its_boxes_along_and_is_started_again() {
    let base = workspace();
    let Some(executor) = start(&config(Choice::Bubblewrap, base.path())).await else { return };
    let sandbox = executor.sandbox().unwrap();
    let here = around(base.path(), Access::Read);
    if let Err(reason) = sandbox.for_commands() {
        assert!(!boxes::in_ci(), "{reason}");
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let marker = marker();
    let runs = sandbox.command(&here, shell(&format!("sleep {marker}")), b"", LONG, OUTPUT);
    let dies = async {
        while alive(&marker) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let spawner = spawner().expect("it runs");
        rustix::process::kill_process(spawner, rustix::process::Signal::KILL).unwrap();
    };
    let (lost, ()) = tokio::time::timeout(LONG, async { tokio::join!(runs, dies) }).await.expect("the end is noticed");
    // Whether its pipes close first or the spawner's socket, the command did not end by itself.
    assert!(lost.is_err(), "{lost:?}");
    tokio::time::timeout(LONG, gone(&marker)).await.expect("its boxes die with it");
    assert_eq!(text(&run(sandbox, &here, command(&["echo", "again"])).await.unwrap()), "again\n");
    sandbox.close().await;
}

/// The spawner that this process started.
fn spawner() -> Option<rustix::process::Pid> {
    let this = std::process::id().to_string();
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).find_map(|entry| {
        let number: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let ours = stat.rsplit_once(')')?.1.split_whitespace().nth(1) == Some(this.as_str());
        (ours && line.contains("--spawner")).then(|| rustix::process::Pid::from_raw(number))?
    })
}
