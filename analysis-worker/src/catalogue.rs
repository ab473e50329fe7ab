//! What is indexed, file by file: entries of a bucket, and in memory what follows from them. Every worker follows the
//! entries of the workspaces it is asked about, so each can answer; nothing is held that could not be read again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::StreamExt;
use runtime::bus::{self, Bus, Followed};
use runtime::{Tasks, clock};
use schemas::code::{Indexed, IndexedFile, IndexedPiece, IndexedWorkspace};
use schemas::stream;
use schemas::wire::{Schema, decode, encode};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::lexical::{Doc, Lexical};
use crate::lookup::Lookup;

/// Workspaces kept in memory; of more, the one that was not asked about for longest goes.
const OPEN_MAX: usize = 16;
/// How long the entries of a workspace may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// How much more a word counts in the name of a definition than in the code.
const NAME_WEIGHT: u32 = 3;
/// And in the path.
const PATH_WEIGHT: u32 = 2;

/// The indexed workspaces.
pub(crate) struct Catalogue {
    bus: Bus,
    tasks: Tasks,
    open: Mutex<BTreeMap<String, Open>>,
}

struct Open {
    code: Arc<Code>,
    asked_at: std::time::Instant,
}

/// One workspace.
pub(crate) struct Code {
    pub(crate) workspace: String,
    held: RwLock<Held>,
    current: watch::Receiver<bool>,
    _follows_while_open: DropGuard,
}

/// A file and its pieces in the index of words.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) entry: IndexedFile,
    revision: u64,
    docs: Vec<Doc>,
}

/// What is in memory of a workspace.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) files: BTreeMap<String, Arc<File>>,
    pub(crate) indexed: Option<Indexed>,
    lexical: Lexical,
    /// The file and the number of its piece, by their name in the index of words.
    docs: Vec<Option<(Arc<str>, u32)>>,
    /// Paths by the last part of their keys.
    paths: Lookup<String, Arc<str>>,
    /// Counts what was put and removed.
    changes: u64,
}

/// A piece of a file.
#[derive(Clone)]
pub(crate) struct PieceOf {
    pub(crate) file: Arc<File>,
    pub(crate) number: usize,
}

impl PieceOf {
    pub(crate) fn piece(&self) -> &IndexedPiece {
        &self.file.entry.pieces[self.number]
    }

    pub(crate) fn code(&self) -> &str {
        lines(&self.file.entry.text, self.piece().start_line, self.piece().end_line)
    }
}

/// The key of a workspace in every entry of it.
fn token(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..16])
}

pub(crate) fn state_key(workspace: &str) -> String {
    format!("state.{}", token(workspace))
}

pub(crate) fn file_key(workspace: &str, path: &str) -> String {
    format!("file.{}.{}", token(workspace), token(path))
}

impl Catalogue {
    pub(crate) fn new(bus: Bus, tasks: Tasks) -> Self {
        Self { bus, tasks, open: Mutex::default() }
    }

    /// All workspaces that were indexed to the end once.
    pub(crate) async fn indexed(&self) -> Result<Vec<Indexed>, bus::Error> {
        let entries = self.bus.entries(stream::BUCKET_CODE, "state.*").await?;
        let states = entries.iter().filter_map(|(_, value)| decode::<IndexedWorkspace>(value).ok());
        Ok(states.filter_map(|state| state.indexed).collect())
    }

    /// A workspace with all its entries; none when it was never indexed.
    pub(crate) async fn code(&self, workspace: &str) -> Result<Option<Arc<Code>>, bus::Error> {
        let known = self.known(workspace);
        let code = match known {
            Some(code) => code,
            None => {
                // Of a workspace that has no entry, nothing would ever come.
                if self.bus.entry(stream::BUCKET_CODE, &state_key(workspace)).await?.is_none() {
                    return Ok(None);
                }
                self.follow(workspace).await?
            }
        };
        let mut current = code.current.clone();
        let arrived = tokio::time::timeout(ARRIVES_WITHIN, current.wait_for(|current| *current)).await;
        match arrived {
            Ok(Ok(_)) => Ok(Some(code)),
            // The stream ended: it is read anew when somebody asks again.
            Ok(Err(_)) => {
                self.close(&code);
                Err(bus::Error::Broken(format!("the entries of {workspace} cannot be followed")))
            }
            Err(_) => Err(bus::Error::Broken(format!("the entries of {workspace} did not arrive"))),
        }
    }

    /// The same, and begins with an empty one.
    pub(crate) async fn begin(&self, workspace: &str) -> Result<Arc<Code>, bus::Error> {
        let state = IndexedWorkspace {
            schema: IndexedWorkspace::SCHEMA.to_owned(),
            workspace: workspace.to_owned(),
            indexed: None,
        };
        self.bus.create_entry(stream::BUCKET_CODE, &state_key(workspace), encode(&state).into()).await?;
        let code = self.code(workspace).await?;
        code.ok_or_else(|| bus::Error::Broken(format!("the entry of {workspace} vanished")))
    }

    /// Writes a file's entry; whoever asks this worker afterwards finds it.
    pub(crate) async fn put(&self, code: &Code, entry: IndexedFile) -> Result<(), bus::Error> {
        let bucket = self.bus.bucket(stream::BUCKET_CODE).await?;
        let key = file_key(&code.workspace, &entry.path);
        let put = bucket.put(&key, encode(&entry).into()).await;
        let revision = put.map_err(|error| bus::Error::Broken(error.to_string()))?;
        code.write().put(last_token(&key), entry, revision);
        Ok(())
    }

    /// Takes files out.
    pub(crate) async fn remove(&self, code: &Code, paths: &[String]) -> Result<(), bus::Error> {
        let bucket = self.bus.bucket(stream::BUCKET_CODE).await?;
        for path in paths {
            let key = file_key(&code.workspace, path);
            bucket.purge(&key).await.map_err(|error| bus::Error::Broken(error.to_string()))?;
            code.write().remove(last_token(&key), u64::MAX);
        }
        Ok(())
    }

    /// Notes that a workspace was indexed to the end.
    pub(crate) async fn finish(&self, code: &Code, indexed: Indexed) -> Result<(), bus::Error> {
        let bucket = self.bus.bucket(stream::BUCKET_CODE).await?;
        let (schema, workspace) = (IndexedWorkspace::SCHEMA.to_owned(), code.workspace.clone());
        let state = IndexedWorkspace { schema, workspace, indexed: Some(indexed.clone()) };
        let put = bucket.put(state_key(&code.workspace), encode(&state).into()).await;
        put.map_err(|error| bus::Error::Broken(error.to_string()))?;
        code.write().indexed = Some(indexed);
        Ok(())
    }

    fn known(&self, workspace: &str) -> Option<Arc<Code>> {
        let mut open = self.open.lock().expect("no panic while the lock is held");
        let found = open.get_mut(workspace)?;
        found.asked_at = clock::instant();
        Some(found.code.clone())
    }

    fn close(&self, code: &Arc<Code>) {
        let mut open = self.open.lock().expect("no panic while the lock is held");
        if open.get(&code.workspace).is_some_and(|known| Arc::ptr_eq(&known.code, code)) {
            open.remove(&code.workspace);
        }
    }

    async fn follow(&self, workspace: &str) -> Result<Arc<Code>, bus::Error> {
        let filters = [state_key(workspace), format!("file.{}.*", token(workspace))];
        let mut entries = self.bus.follow_entries(stream::BUCKET_CODE, &filters).await?;
        let (arrived, current) = watch::channel(false);
        let closed = CancellationToken::new();
        let code = Arc::new(Code {
            workspace: workspace.to_owned(),
            held: RwLock::default(),
            current,
            _follows_while_open: closed.clone().drop_guard(),
        });
        let (follower, soft) = (Arc::downgrade(&code), self.tasks.soft());
        self.tasks.spawn_background(async move {
            loop {
                let entry = tokio::select! {
                    () = closed.cancelled() => return,
                    () = soft.cancelled() => return,
                    entry = entries.next() => entry,
                };
                let Some(code) = follower.upgrade() else { return };
                match entry {
                    Some(Ok(entry)) => {
                        let is_current = entry.is_current;
                        code.write().take_in(entry);
                        if is_current {
                            arrived.send_replace(true);
                        }
                    }
                    Some(Err(error)) => {
                        tracing::warn!(workspace = code.workspace, %error, "the index is no longer followed; it is read anew");
                        return;
                    }
                    None => return,
                }
            }
        });
        let mut open = self.open.lock().expect("no panic while the lock is held");
        // Two may have begun at once: the first one stays.
        if let Some(known) = open.get(workspace) {
            return Ok(known.code.clone());
        }
        if open.len() >= OPEN_MAX
            && let Some(oldest) = open.iter().min_by_key(|(_, open)| open.asked_at).map(|(name, _)| name.clone())
        {
            open.remove(&oldest);
        }
        open.insert(workspace.to_owned(), Open { code: code.clone(), asked_at: clock::instant() });
        Ok(code)
    }
}

impl Code {
    /// What is known now. Held for a moment only, and never across an await.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().expect("no panic while the lock is held")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Held> {
        self.held.write().expect("no panic while the lock is held")
    }
}

impl Held {
    fn take_in(&mut self, followed: Followed) {
        if followed.key.starts_with("state.") {
            let state = followed.value.and_then(|value| decode::<IndexedWorkspace>(&value).ok());
            self.indexed = state.and_then(|state| state.indexed);
            return;
        }
        let token = last_token(&followed.key);
        match followed.value {
            None => self.remove(token, followed.revision),
            Some(value) => match decode::<IndexedFile>(&value) {
                Ok(entry) if IndexedFile::reads(&entry.schema) => self.put(token, entry, followed.revision),
                Ok(entry) => {
                    tracing::warn!(path = entry.path, schema = entry.schema, "passed over an entry of another version")
                }
                Err(error) => tracing::warn!(key = followed.key, %error, "passed over an entry that cannot be read"),
            },
        }
    }

    fn put(&mut self, token: &str, entry: IndexedFile, revision: u64) {
        if self.files.get(&entry.path).is_some_and(|known| known.revision >= revision) {
            return;
        }
        self.remove(token, u64::MAX);
        self.changes += 1;
        if self.lexical.is_worn() {
            self.build_anew();
        }
        let path: Arc<str> = entry.path.as_str().into();
        let docs = insert(&mut self.lexical, &mut self.docs, &entry, &path);
        self.paths.insert(token.to_owned(), path);
        self.files.insert(entry.path.clone(), Arc::new(File { entry, revision, docs }));
    }

    /// Removes a file that is no newer than this.
    fn remove(&mut self, token: &str, revision: u64) {
        let Some(path) = self.paths.get(token).cloned() else { return };
        if self.files.get(&*path).is_none_or(|known| known.revision > revision) {
            return;
        }
        self.paths.remove(token);
        self.changes += 1;
        if let Some(file) = self.files.remove(&*path) {
            for doc in &file.docs {
                self.lexical.remove(*doc);
                self.docs[*doc as usize] = None;
            }
        }
    }

    fn build_anew(&mut self) {
        (self.lexical, self.docs) = (Lexical::default(), Vec::new());
        for (path, file) in &mut self.files {
            let docs = insert(&mut self.lexical, &mut self.docs, &file.entry, &path.as_str().into());
            *file = Arc::new(File { entry: file.entry.clone(), revision: file.revision, docs });
        }
    }

    /// Tells one state from another.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// The pieces whose words fit a query best, among those that are wanted, with the words that stand there.
    pub(crate) fn by_words(
        &self,
        query: &str,
        limit: usize,
        wanted: impl Fn(&IndexedFile, &IndexedPiece) -> bool,
    ) -> Vec<(PieceOf, f32, Vec<String>)> {
        let found = self.lexical.search(query, limit, |doc| {
            self.piece_of(doc).is_some_and(|piece| wanted(&piece.file.entry, piece.piece()))
        });
        found.into_iter().filter_map(|m| Some((self.piece_of(m.doc)?, m.score, m.words))).collect()
    }

    fn piece_of(&self, doc: Doc) -> Option<PieceOf> {
        let (path, number) = self.docs.get(doc as usize)?.as_ref()?;
        Some(PieceOf { file: self.files.get(&**path)?.clone(), number: *number as usize })
    }

    /// The piece of a file that begins at this line and was embedded as this; none when the file has changed since.
    pub(crate) fn piece(&self, path: &str, start_line: u32, hash: &str) -> Option<PieceOf> {
        let file = self.files.get(path)?;
        let is_it = |piece: &IndexedPiece| piece.start_line == start_line && piece.hash == hash;
        Some(PieceOf { file: file.clone(), number: file.entry.pieces.iter().position(is_it)? })
    }

    /// The piece of a file that holds a line.
    pub(crate) fn piece_at(&self, path: &str, line: u32) -> Option<PieceOf> {
        let file = self.files.get(path)?;
        let holds = |piece: &IndexedPiece| (piece.start_line..=piece.end_line).contains(&line);
        Some(PieceOf { file: file.clone(), number: file.entry.pieces.iter().position(holds)? })
    }
}

fn insert(
    lexical: &mut Lexical,
    docs: &mut Vec<Option<(Arc<str>, u32)>>,
    entry: &IndexedFile,
    path: &Arc<str>,
) -> Vec<Doc> {
    let mut names = String::new();
    let mut inserted = Vec::with_capacity(entry.pieces.len());
    for (number, piece) in (0_u32..).zip(&entry.pieces) {
        names.clear();
        for symbol in &piece.symbols {
            names.push_str(symbol);
            names.push(' ');
        }
        let code = lines(&entry.text, piece.start_line, piece.end_line);
        let doc = lexical.insert(&[(code, 1), (&names, NAME_WEIGHT), (&entry.path, PATH_WEIGHT)]);
        docs.resize_with(doc as usize + 1, || None);
        docs[doc as usize] = Some((path.clone(), number));
        inserted.push(doc);
    }
    inserted
}

fn last_token(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The lines of a text from one to another, both included and counted from 1, without the last line's end.
pub(crate) fn lines(text: &str, start: u32, end: u32) -> &str {
    let begin = |line: u32| match line {
        0 | 1 => 0,
        line => memchr::memchr_iter(b'\n', text.as_bytes()).nth(line as usize - 2).map_or(text.len(), |at| at + 1),
    };
    let (from, to) = (begin(start), begin(end.saturating_add(1)));
    text.get(from..to).unwrap_or_default().trim_end_matches(['\n', '\r'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, text: &str, symbols: &[&str]) -> IndexedFile {
        let lines = text.lines().count() as u32;
        let symbols = symbols.iter().map(|symbol| (*symbol).to_owned()).collect();
        let piece = IndexedPiece { start_line: 1, end_line: lines, hash: token(text), symbols, kinds: vec![] };
        IndexedFile {
            schema: IndexedFile::SCHEMA.into(),
            path: path.into(),
            hash: token(text),
            language: "text".into(),
            model: None,
            text: text.into(),
            pieces: vec![piece],
            symbols: vec![],
            references: vec![],
            imports: vec![],
        }
    }

    fn found(held: &Held, query: &str) -> Vec<String> {
        held.by_words(query, 10, |_, _| true).into_iter().map(|(piece, ..)| piece.file.entry.path.clone()).collect()
    }

    #[test]
    fn the_newest_entry_of_a_file_counts_in_whatever_order_they_come() {
        let mut held = Held::default();
        held.put("a", entry("a.rs", "open the store", &[]), 5);
        held.put("a", entry("a.rs", "close the door", &[]), 4);
        assert_eq!(found(&held, "store"), ["a.rs"]);
        assert!(found(&held, "door").is_empty());
        held.put("a", entry("a.rs", "close the door", &[]), 6);
        assert_eq!(found(&held, "door"), ["a.rs"]);
        assert!(found(&held, "store").is_empty());
        held.remove("a", 5);
        assert_eq!(held.files.len(), 1, "an old removal");
        held.remove("a", 7);
        assert!(held.files.is_empty() && found(&held, "door").is_empty());
    }

    #[test]
    fn names_of_definitions_count_most() {
        let mut held = Held::default();
        held.put("a", entry("a.rs", "lease lease lease", &[]), 1);
        held.put("b", entry("b.rs", "lease other words", &["Lease"]), 2);
        assert_eq!(found(&held, "lease")[0], "b.rs");
    }

    #[test]
    fn many_changes_leave_the_index_as_if_it_were_new() {
        let mut held = Held::default();
        for revision in 1..=5_000 {
            held.put("a", entry("a.rs", &format!("word{revision} common"), &[]), revision);
        }
        held.put("b", entry("b.rs", "common", &[]), 6_000);
        assert!(held.docs.len() < 2_500, "{}", held.docs.len());
        assert_eq!(found(&held, "word5000"), ["a.rs"]);
        assert_eq!(found(&held, "common").len(), 2);
        assert_eq!(held.piece_at("b.rs", 1).unwrap().code(), "common");
        assert!(held.piece("b.rs", 1, "other").is_none());
    }

    #[test]
    fn lines_are_counted_from_one() {
        let text = "one\ntwo\r\nthree\n";
        assert_eq!(lines(text, 1, 1), "one");
        assert_eq!(lines(text, 2, 3), "two\r\nthree");
        assert_eq!(lines(text, 3, 9), "three");
        assert_eq!(lines(text, 7, 9), "");
    }
}
