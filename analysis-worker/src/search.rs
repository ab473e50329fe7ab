//! Finding pieces of an indexed workspace: by meaning (vectors), by words (BM25), or both, fused by the reciprocals of
//! their ranks: those of the piece, and of the best piece of its file, for the two ways often see different pieces of the right
//! file. Where vectors cannot be had, words still find, and the answer says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use schemas::code::{About, By, Found, IndexedFile, IndexedPiece, Piece, SearchCode};
use schemas::rpc::Refusal;

use crate::catalogue::{Catalogue, Code, PieceOf};
use crate::embedder::Embedder;
use crate::indexer::COLLECTION;
use crate::language::Language;
use crate::symbols::SymbolKind;
use crate::vectors::{Filter, LIMIT_MAX, VectorStore};

/// Pieces of one answer at most.
const LIMIT: usize = 50;
/// Pieces that each way of searching offers to the other.
const OFFERED: usize = 60;
/// How slowly a worse rank counts less. The paper on reciprocal rank fusion (Cormack et al., 2009) takes 60, for many long
/// lists; of two short ones, the first of either would lose to what stands in the middle of both.
const RANK_CONSTANT: f64 = 10.0;
/// The two ways.
const MEANING: usize = 0;
const WORDS: usize = 1;
/// Bytes of a query that are looked at.
const QUERY_BYTES_MAX: usize = 8 << 10;
/// Globs of one question.
const GLOBS_MAX: usize = 32;

/// Answers questions.
pub(crate) struct Search {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) store: Arc<dyn VectorStore>,
    pub(crate) embedder: Arc<Embedder>,
}

/// A workspace, or the part of one that is asked about.
struct Place {
    code: Arc<Code>,
    /// Below which paths count, with the `/` at its end; empty for all.
    below: String,
}

/// What is looked for.
struct Looked {
    text: String,
    /// A piece that is not its own answer.
    except: Option<(String, u32)>,
}

/// Which pieces are wanted.
struct Wanted {
    languages: Vec<String>,
    globs: Option<GlobSet>,
    kinds: Vec<String>,
    below: String,
    except: Option<(String, u32)>,
}

/// A piece and where each way of searching saw it.
#[derive(Default)]
struct Ranked {
    piece: Option<PieceOf>,
    score: f64,
    has_words: bool,
    why: Vec<String>,
}

impl Wanted {
    fn accepts(&self, entry: &IndexedFile, piece: &IndexedPiece) -> bool {
        let Some(path) = entry.path.strip_prefix(self.below.as_str()) else { return false };
        (self.languages.is_empty() || self.languages.contains(&entry.language))
            && self.globs.as_ref().is_none_or(|globs| globs.is_match(path))
            && (self.kinds.is_empty() || piece.kinds.iter().any(|kind| self.kinds.contains(kind)))
            && self.except.as_ref().is_none_or(|(path, line)| *path != entry.path || *line != piece.start_line)
    }
}

impl Search {
    /// Finds pieces, best first.
    pub(crate) async fn search(&self, question: SearchCode) -> Result<Found, Refusal> {
        let place = self.place(&question.workspace).await?;
        let looked = self.looked_for(&place, &question.about)?;
        let limit = (question.limit.max(1) as usize).min(LIMIT);
        let wanted = Arc::new(Wanted {
            languages: languages(&question.languages)?,
            globs: globs(&question.paths)?,
            kinds: kinds(&question.kinds)?,
            below: place.below.clone(),
            except: looked.except.clone(),
        });
        let mut notes = Vec::new();
        let offered = OFFERED.max(limit);
        let by_meaning = match question.by {
            By::Words => Vec::new(),
            By::Both | By::Meaning => match self.by_meaning(&place, &looked.text, &wanted, offered).await {
                Ok(found) => found,
                Err(why) => {
                    notes.push(format!("found by words only: {why}"));
                    Vec::new()
                }
            },
        };
        let by_words = match question.by {
            By::Meaning => Vec::new(),
            By::Both | By::Words => {
                let (code, wanted, text) = (place.code.clone(), wanted.clone(), looked.text);
                let found = tokio::task::spawn_blocking(move || {
                    code.read().by_words(&text, offered, |entry, piece| wanted.accepts(entry, piece))
                });
                found.await.map_err(|_| refusal("internal", "the search crashed"))?
            }
        };
        if place.code.read().indexed.is_none() {
            notes.push("the workspace is being indexed for the first time; not all of it is found yet".to_owned());
        }
        let pieces = fused(by_meaning, by_words, question.by);
        let shown = pieces.into_iter().take(limit).filter_map(|ranked| shown(ranked, &place.below));
        Ok(Found { pieces: shown.collect(), notes })
    }

    /// The indexed workspace that is meant, or the one it lies in, and below which paths it lies there.
    pub(crate) async fn place_of(&self, workspace: &str) -> Result<(Arc<Code>, String), Refusal> {
        self.place(workspace).await.map(|place| (place.code, place.below))
    }

    async fn place(&self, workspace: &str) -> Result<Place, Refusal> {
        let code = self.catalogue.code(workspace).await.map_err(|error| refusal("internal", &error.to_string()))?;
        if let Some(code) = code.filter(|code| !code.read().files.is_empty()) {
            return Ok(Place { code, below: String::new() });
        }
        let indexed = self.catalogue.indexed().await.map_err(|error| refusal("internal", &error.to_string()))?;
        let below = |other: &str| workspace.strip_prefix(other)?.strip_prefix('/').map(|below| format!("{below}/"));
        let around = indexed.iter().filter_map(|other| Some((&other.workspace, below(&other.workspace)?)));
        if let Some((around, below)) = around.max_by_key(|(around, _)| around.len())
            && let Ok(Some(code)) = self.catalogue.code(around).await
        {
            return Ok(Place { code, below });
        }
        let detail = format!(
            "{workspace} is not indexed: index it with `vlinders index {workspace}`; search_code finds text without an index"
        );
        Err(refusal("not_indexed", &detail))
    }

    fn looked_for(&self, place: &Place, about: &About) -> Result<Looked, Refusal> {
        let (text, except) = match about {
            About::Query(text) | About::Code(text) => (text.clone(), None),
            About::Line { path, line } => {
                let whole = format!("{}{path}", place.below);
                let piece = place.code.read().piece_at(&whole, *line).ok_or_else(|| {
                    refusal(
                        "unknown_piece",
                        &format!("nothing is indexed at {path}:{line}; name a line of an indexed file"),
                    )
                })?;
                (piece.code().to_owned(), Some((whole, piece.piece().start_line)))
            }
        };
        let mut text = text;
        if text.trim().is_empty() {
            return Err(refusal("bad_request", "there is nothing to look for"));
        }
        let end = (0..=QUERY_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        Ok(Looked { text, except })
    }

    /// The nearest pieces and their cosines. Errors are for people.
    async fn by_meaning(
        &self,
        place: &Place,
        text: &str,
        wanted: &Wanted,
        limit: usize,
    ) -> Result<Vec<(PieceOf, f32)>, String> {
        let model = self.embedder.model().await.map_err(|error| error.to_string())?;
        let vector = self.embedder.embed(&model, text).await.map_err(|error| error.to_string())?;
        let mut filter = Filter::any("workspace", [&place.code.workspace]).and("model", [&model]);
        if !wanted.languages.is_empty() {
            filter = filter.and("language", wanted.languages.iter().map(String::as_str));
        }
        if !wanted.kinds.is_empty() {
            filter = filter.and("kinds", wanted.kinds.iter().map(String::as_str));
        }
        // Paths are matched here: as many are asked for as may be.
        let narrow = wanted.globs.is_some() || !wanted.below.is_empty();
        let asked = if narrow { LIMIT_MAX } else { limit + limit / 2 };
        let hits = self.store.search(COLLECTION, vector, &filter, asked).await.map_err(|error| error.to_string())?;
        let held = place.code.read();
        let piece = |payload: &serde_json::Map<String, serde_json::Value>| {
            let (path, hash) = (payload.get("file_path")?.as_str()?, payload.get("hash")?.as_str()?);
            let line = u32::try_from(payload.get("start_line")?.as_u64()?).ok()?;
            // What is no longer in the catalogue is passed over.
            held.piece(path, line, hash)
        };
        let pieces = hits.iter().filter_map(|hit| Some((piece(&hit.payload)?, hit.score)));
        let pieces = pieces.filter(|(found, _)| wanted.accepts(&found.file.entry, found.piece()));
        Ok(pieces.take(limit).collect())
    }
}

/// The pieces of both ways in one order.
fn fused(by_meaning: Vec<(PieceOf, f32)>, by_words: Vec<(PieceOf, f32, Vec<String>)>, by: By) -> Vec<Ranked> {
    let mut ranked: BTreeMap<(String, usize), Ranked> = BTreeMap::new();
    let reciprocal = |rank: usize| 1.0 / (RANK_CONSTANT + rank as f64);
    // By way, where a file's best piece stands.
    let mut files: [BTreeMap<String, usize>; 2] = Default::default();
    let mut see = |way: usize, piece: PieceOf, rank: usize, own: f32, why: String| {
        let path = piece.file.entry.path.clone();
        files[way].entry(path.clone()).or_insert(rank);
        let seen = ranked.entry((path, piece.number)).or_default();
        seen.score += match by {
            By::Both => reciprocal(rank),
            By::Meaning | By::Words => f64::from(own),
        };
        seen.has_words |= way == WORDS;
        seen.why.push(why);
        seen.piece = Some(piece);
    };
    for (rank, (piece, score)) in (1..).zip(by_meaning) {
        see(MEANING, piece, rank, score, format!("meaning #{rank} ({score:.2})"));
    }
    for (rank, (piece, score, words)) in (1..).zip(by_words) {
        let words = words.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        see(WORDS, piece, rank, score, format!("words #{rank} ({words})"));
    }
    // One way alone keeps its own order.
    if files.iter().all(|of_way| !of_way.is_empty()) {
        for ((path, _), seen) in &mut ranked {
            seen.score += files.iter().filter_map(|of_way| of_way.get(path)).map(|rank| reciprocal(*rank)).sum::<f64>();
        }
    }
    let mut ranked: Vec<((String, usize), Ranked)> = ranked.into_iter().collect();
    // Of two that are equal, one of each way, the words are there, and the meaning is a guess.
    let order = |x: &Ranked, y: &Ranked| y.score.total_cmp(&x.score).then(y.has_words.cmp(&x.has_words));
    ranked.sort_by(|(a, x), (b, y)| order(x, y).then_with(|| a.cmp(b)));
    ranked.into_iter().map(|(_, ranked)| ranked).collect()
}

fn shown(ranked: Ranked, below: &str) -> Option<Piece> {
    let found = ranked.piece?;
    let (entry, piece) = (&found.file.entry, found.piece());
    Some(Piece {
        path: entry.path.strip_prefix(below).unwrap_or(&entry.path).to_owned(),
        language: entry.language.clone(),
        start_line: piece.start_line,
        end_line: piece.end_line,
        code: found.code().to_owned(),
        symbols: piece.symbols.clone(),
        score: ranked.score,
        why: ranked.why.join(", "),
    })
}

fn languages(names: &[String]) -> Result<Vec<String>, Refusal> {
    let known = |name: &String| {
        let name = name.to_lowercase();
        match name == "text" || Language::from_name(&name).is_some() {
            true => Ok(name),
            false => Err(refusal(
                "bad_request",
                &format!("there is no language {name:?}; there are text, {}", all_languages()),
            )),
        }
    };
    names.iter().map(known).collect()
}

fn all_languages() -> String {
    Language::ALL.iter().map(|language| language.name()).collect::<Vec<_>>().join(", ")
}

fn kinds(names: &[String]) -> Result<Vec<String>, Refusal> {
    let known = |name: &String| match SymbolKind::from_name(name) {
        Some(kind) => Ok(kind.name().to_owned()),
        None => {
            let all = SymbolKind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
            Err(refusal("bad_request", &format!("there is no kind of definition {name:?}; there are {all}")))
        }
    };
    names.iter().map(known).collect()
}

fn globs(paths: &[String]) -> Result<Option<GlobSet>, Refusal> {
    if paths.is_empty() {
        return Ok(None);
    }
    if paths.len() > GLOBS_MAX {
        return Err(refusal("bad_request", &format!("{} paths; name at most {GLOBS_MAX}", paths.len())));
    }
    let mut set = GlobSetBuilder::new();
    for path in paths {
        let clean = path.trim_start_matches("./").trim_end_matches('/');
        // A directory means what is below it, and a bare name the file wherever it is.
        let spellings = [clean.to_owned(), format!("{clean}/**"), format!("**/{clean}")];
        for spelling in spellings {
            let glob = GlobBuilder::new(&spelling).literal_separator(true).build();
            set.add(glob.map_err(|error| refusal("bad_request", &format!("{path}: {error}")))?);
        }
    }
    set.build().map(Some).map_err(|error| refusal("bad_request", &error.to_string()))
}

pub(crate) fn refusal(code: &str, detail: &str) -> Refusal {
    Refusal { code: code.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_glob_a_directory_or_a_name() {
        let set = globs(&["src".into(), "*.py".into(), "docs/**/*.md".into()]).unwrap().unwrap();
        for path in ["src/a.rs", "src/deep/a.rs", "a.py", "deep/a.py", "docs/a/b.md"] {
            assert!(set.is_match(path), "{path}");
        }
        for path in ["source/a.rs", "x/src/b", "a.pyc", "docs/a.rs"] {
            assert!(!set.is_match(path), "{path}");
        }
        assert_eq!(globs(&["[".into()]).unwrap_err().code, "bad_request");
        assert!(globs(&[]).unwrap().is_none());
    }

    #[test]
    fn unknown_languages_and_kinds_are_refused_with_those_there_are() {
        assert_eq!(languages(&["Rust".into()]).unwrap(), ["rust"]);
        assert!(languages(&["klingon".into()]).unwrap_err().detail.contains("python"));
        assert!(kinds(&["funktion".into()]).unwrap_err().detail.contains("function"));
    }
}
