//! Our images: the runner, its libraries if it has any, and two empty directories; for commands also the links that this
//! system has at its root. Made from scratch out of files that are here anyway, named by their hash, so that a changed
//! runner is another image and nothing is ever downloaded.

use std::io;
use std::path::PathBuf;

use bollard::Docker;
use bollard::query_parameters::{CreateImageOptions, PruneImagesOptions};
use futures::TryStreamExt;
use schemas::object::Reference;
use tar::{Builder, EntryType, Header};
use tool_runner::{RUNNER, WORKSPACE};

use super::super::program::{LIBRARIES, Program};
use super::super::system::System;
use super::sentence;

const REPOSITORY: &str = "vlinders/tool-runner";
/// Hex digits of the hash that make the tag.
const TAG_DIGITS: usize = 16;
/// Images of earlier runners are removed when they are this old: another checkout may go on using its own.
const KEPT_HOURS: u32 = 7 * 24;
const LABEL_IMAGE: &str = "org.vlinders.image";

/// The image, and what it is made of.
pub(super) struct Image {
    tag: String,
    program: Program,
    /// Name and target.
    links: Vec<(String, PathBuf)>,
}

impl Image {
    /// Names the image of a program by its contents.
    pub(super) fn of(program: &Program) -> Result<Self, String> {
        Self::with(program, Vec::new())
    }

    /// The same for commands.
    pub(super) fn for_commands(program: &Program, system: &System) -> Result<Self, String> {
        // The engine lays its init process into `/sbin`, which must be a place of its own.
        let links = system.links.iter().filter(|(name, _)| name != "sbin").cloned();
        Self::with(program, links.collect())
    }

    fn with(program: &Program, links: Vec<(String, PathBuf)>) -> Result<Self, String> {
        let archive = archive(program, &links).map_err(|error| format!("pack the runner: {error}"))?;
        let mut tag = Reference::to(&archive, "application/x-tar").sha256;
        tag.truncate(TAG_DIGITS);
        Ok(Self { tag, program: program.clone(), links })
    }

    /// Its full name.
    pub(super) fn name(&self) -> String {
        format!("{REPOSITORY}:{}", self.tag)
    }

    /// Makes it unless the engine has it.
    pub(super) async fn ensure(&self, engine: &Docker) -> Result<(), String> {
        match engine.inspect_image(&self.name()).await {
            Ok(_) => return Ok(()),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(format!("the Docker engine does not answer: {}", sentence(&error))),
        }
        let archive = archive(&self.program, &self.links).map_err(|error| format!("pack the runner: {error}"))?;
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(REPOSITORY.to_owned()),
            tag: Some(self.tag.clone()),
            changes: vec![format!("LABEL {LABEL_IMAGE}=tool-runner")],
            ..CreateImageOptions::default()
        };
        let body = bollard::body_full(archive.into());
        let made: Result<Vec<_>, _> = engine.create_image(Some(options), Some(body), None).try_collect().await;
        made.map_err(|error| format!("the Docker engine did not take the image: {}", sentence(&error)))?;
        tracing::info!(image = self.name(), "made the image of the tool runner");
        let old = [
            ("label", vec![LABEL_IMAGE.to_owned()]),
            ("dangling", vec!["false".to_owned()]),
            ("until", vec![format!("{KEPT_HOURS}h")]),
        ];
        let filters = old.into_iter().map(|(name, values)| (name.to_owned(), values)).collect();
        if let Err(error) = engine.prune_images(Some(PruneImagesOptions { filters: Some(filters) })).await {
            tracing::debug!(%error, "old images of the tool runner stay");
        }
        Ok(())
    }
}

/// Owners and times are the same for everybody, so the same files have the same hash.
fn archive(program: &Program, links: &[(String, PathBuf)]) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let header = |kind: EntryType, mode: u32, size: u64| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    // An engine gives a file system in memory the mode of what it covers.
    for (directory, mode) in [(WORKSPACE, 0o755), ("/tmp", 0o1777), ("/box", 0o755), (LIBRARIES, 0o755)] {
        let path = directory.trim_start_matches('/');
        archive.append_data(&mut header(EntryType::Directory, mode, 0), path, io::empty())?;
    }
    let runner = (RUNNER.to_owned(), &program.file);
    let libraries = program.libraries.iter().map(|(name, path)| (format!("{LIBRARIES}/{name}"), path));
    for (inside, path) in std::iter::once(runner).chain(libraries) {
        let file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        archive.append_data(&mut header(EntryType::Regular, 0o755, size), inside.trim_start_matches('/'), file)?;
    }
    for (name, target) in links {
        archive.append_link(&mut header(EntryType::Symlink, 0o777, 0), name, target)?;
    }
    archive.into_inner()
}
