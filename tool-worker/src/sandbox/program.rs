//! The program that runs in a box: its file, how it is called, and the libraries it takes along.
//!
//! A runner that is linked statically (`deploy/sandbox-image` builds one) starts faster and makes a small image. This very
//! program does as well, so that nothing but it is needed.

use std::io;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tool_runner::RUNNER;

use crate::config::Config;

/// The static runner's name, beside the program.
const STATIC_RUNNER: &str = "vlinders-tool-runner";
/// Where a box has the runner's libraries, and the loader among them.
pub(crate) const LIBRARIES: &str = "/box/lib";
const LOADER: &str = "loader.so";

/// What a box needs to run tools.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The runner's file, here.
    pub(crate) file: PathBuf,
    /// The loader and the libraries: name in the box, path here. None for a static program.
    pub(crate) libraries: Vec<(String, PathBuf)>,
    arguments: Vec<String>,
}

impl Program {
    /// Finds the runner and what it is linked with.
    pub(crate) async fn find(config: &Config) -> Result<Self, String> {
        let this = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
        let beside = this.with_file_name(STATIC_RUNNER);
        let (file, arguments) = match &config.runner {
            Some(runner) => (runner.clone(), config.runner_arguments.clone()),
            None if beside.is_file() => (beside, Vec::new()),
            None => (this, config.runner_arguments.clone()),
        };
        let loader = loader_of(&file).map_err(|error| format!("read the runner {}: {error}", file.display()))?;
        let mut libraries = Vec::new();
        if let Some(loader) = loader {
            libraries = libraries_of(&loader, &file).await?;
            libraries.push((LOADER.to_owned(), loader));
        }
        Ok(Self { file, libraries, arguments })
    }

    /// What makes the program the runner, outside a box.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The command line inside the box.
    pub(crate) fn command(&self) -> Vec<String> {
        let loaded = [format!("{LIBRARIES}/{LOADER}"), "--library-path".to_owned(), LIBRARIES.to_owned()];
        let loader = loaded.into_iter().filter(|_| !self.libraries.is_empty());
        loader.chain([RUNNER.to_owned()]).chain(self.arguments.iter().cloned()).collect()
    }
}

/// The loader that a program asks for, none when it is linked statically: the interpreter of its ELF header.
fn loader_of(program: &Path) -> io::Result<Option<PathBuf>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(program)?;
    let not_elf = || io::Error::new(io::ErrorKind::InvalidData, "it is not a 64-bit ELF program");
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).map_err(|_| not_elf())?;
    if header[..5] != *b"\x7fELF\x02" {
        return Err(not_elf());
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let (segments, size, count) = (number(&header[32..40]), number(&header[54..56]), number(&header[56..58]));
    for segment in 0..count {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, segments + segment * size)?;
        if number(&entry[..4]) == u64::from(libc::PT_INTERP) {
            let mut path = vec![0; usize::try_from(number(&entry[32..40]).min(4096)).expect("small")];
            file.read_exact_at(&mut path, number(&entry[8..16]))?;
            let path = String::from_utf8_lossy(&path).trim_end_matches('\0').to_owned();
            return Ok(Some(PathBuf::from(path)));
        }
    }
    Ok(None)
}

/// Asks the loader what it would load: `libc.so.6 => /lib/libc.so.6 (0x…)`.
async fn libraries_of(loader: &Path, runner: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let output = Command::new(loader).arg("--list").arg(runner).env_clear().output().await;
    let output = output.map_err(|error| format!("list the runner's libraries: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "list the libraries of {}: {}",
            runner.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut libraries = Vec::new();
    for line in text.lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let path = rest.split(" (").next().unwrap_or(rest).trim();
        if !path.starts_with('/') {
            return Err(format!("the runner needs {name}, which is not found"));
        }
        if !name.starts_with('/') {
            libraries.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(libraries)
}
