//! Finding pieces of text by their words: an inverted index in memory, ranked by BM25.
//!
//! Words of code are identifiers: each counts as a whole and by its parts, so that `parseConfig` and `parse_config` are
//! found by "parse config". A word in a definition's name or in the path counts more than one in the code. What is
//! removed is only marked; once most is, the index is built anew.

use std::collections::BTreeMap;

use crate::lookup::Lookup;

/// How fast a repeated word counts less.
const K1: f32 = 1.2;
/// How much long pieces are held against short ones.
const B: f32 = 0.75;
/// Words longer than this are hashes and data.
const WORD_CHARS_MAX: usize = 64;
/// Words of one query that count; a whole file may be given as one.
const QUERY_WORDS_MAX: usize = 64;
/// Fewer removed pieces than this are not worth building anew for.
const COMPACT_FROM: usize = 1_024;

/// Words that say nothing about what is looked for.
const STOP_WORDS: [&str; 48] = [
    "a", "an", "and", "are", "as", "at", "be", "been", "by", "can", "code", "do", "does", "for", "from", "function",
    "get", "has", "have", "how", "i", "if", "in", "into", "is", "it", "its", "of", "on", "one", "or", "that", "the",
    "them", "then", "there", "these", "this", "to", "was", "we", "what", "when", "where", "which", "who", "why",
    "with",
];

/// The name of a piece of text in the index.
pub(crate) type Doc = u32;

/// An inverted index.
#[derive(Debug, Default)]
pub(crate) struct Lexical {
    words: Lookup<Box<str>, u32>,
    postings: Vec<Posting>,
    docs: Vec<Option<Entry>>,
    live: usize,
    length: u64,
}

/// Where a word stands.
#[derive(Debug, Default)]
struct Posting {
    /// Pieces that are not removed.
    live: u32,
    /// Pieces, in the order in which they came, and how often the word counts there.
    places: Vec<(Doc, u32)>,
}

#[derive(Debug)]
struct Entry {
    length: u32,
    /// Its words and how often each counts.
    words: Vec<(u32, u32)>,
}

/// A piece that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Match {
    pub(crate) doc: Doc,
    pub(crate) score: f32,
    /// The words of the query that stand there, the rarest first.
    pub(crate) words: Vec<String>,
}

impl Lexical {
    /// Takes in a piece: texts, each with how much its words count.
    pub(crate) fn insert(&mut self, texts: &[(&str, u32)]) -> Doc {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        let mut length = 0_u32;
        for (text, weight) in texts {
            for_each_word(text, |word| {
                let next = u32::try_from(self.postings.len()).unwrap_or(u32::MAX);
                let id = match self.words.get(word) {
                    Some(id) => *id,
                    None => {
                        self.words.insert(word.into(), next);
                        self.postings.push(Posting::default());
                        next
                    }
                };
                *counts.entry(id).or_default() += weight;
                length += weight;
            });
        }
        let doc = Doc::try_from(self.docs.len()).unwrap_or(Doc::MAX);
        let words: Vec<(u32, u32)> = counts.into_iter().collect();
        for (word, count) in &words {
            let posting = &mut self.postings[*word as usize];
            posting.places.push((doc, *count));
            posting.live += 1;
        }
        self.docs.push(Some(Entry { length, words }));
        self.live += 1;
        self.length += u64::from(length);
        doc
    }

    /// Takes a piece out.
    pub(crate) fn remove(&mut self, doc: Doc) {
        let Some(entry) = self.docs.get_mut(doc as usize).and_then(Option::take) else { return };
        for (word, _) in &entry.words {
            self.postings[*word as usize].live -= 1;
        }
        self.live -= 1;
        self.length -= u64::from(entry.length);
    }

    /// Whether most of it is only marked as removed, so that it should be built anew.
    pub(crate) fn is_worn(&self) -> bool {
        let removed = self.docs.len() - self.live;
        removed >= COMPACT_FROM && removed > self.live
    }

    /// The pieces that a query fits best, among those that are wanted.
    pub(crate) fn search(&self, query: &str, limit: usize, wanted: impl Fn(Doc) -> bool) -> Vec<Match> {
        let asked = self.asked(query);
        let mean = self.length as f32 / self.live.max(1) as f32;
        let mut scores: Lookup<Doc, (f32, u64)> = Lookup::default();
        for (place, (word, idf)) in asked.iter().enumerate() {
            for (doc, count) in &self.postings[*word as usize].places {
                let Some(entry) = self.docs[*doc as usize].as_ref() else { continue };
                let count = *count as f32;
                let length = K1 * (1.0 - B + B * entry.length as f32 / mean);
                let (score, words) = scores.entry(*doc).or_default();
                *score += idf * count * (K1 + 1.0) / (count + length);
                *words |= 1 << place;
            }
        }
        let mut found: Vec<(Doc, f32, u64)> = scores
            .into_iter()
            .filter(|(doc, _)| wanted(*doc))
            .map(|(doc, (score, words))| (doc, score, words))
            .collect();
        found.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.truncate(limit);
        let spelled = self.spelled(&asked);
        let words = |marks: u64| (0..asked.len()).filter(|i| marks >> i & 1 == 1).map(|i| spelled[i].clone()).collect();
        found.into_iter().map(|(doc, score, marks)| Match { doc, score, words: words(marks) }).collect()
    }

    /// The known words of a query, each once, with how much they tell; the rarest first.
    fn asked(&self, query: &str) -> Vec<(u32, f32)> {
        let mut asked: Vec<u32> = Vec::new();
        for_each_word(query, |word| {
            if let Some(id) = self.words.get(word).filter(|_| STOP_WORDS.binary_search(&word).is_err()) {
                asked.push(*id);
            }
        });
        asked.sort_unstable();
        asked.dedup();
        let idf = |word: u32| {
            let (all, with) = (self.live as f32, self.postings[word as usize].live as f32);
            (1.0 + (all - with + 0.5) / (with + 0.5)).ln()
        };
        let mut asked: Vec<(u32, f32)> = asked.into_iter().map(|word| (word, idf(word))).collect();
        asked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        asked.truncate(QUERY_WORDS_MAX);
        asked
    }

    fn spelled(&self, asked: &[(u32, f32)]) -> Vec<String> {
        let mut spelled = vec![String::new(); asked.len()];
        let places: BTreeMap<u32, usize> = asked.iter().enumerate().map(|(i, (word, _))| (*word, i)).collect();
        for (word, id) in &self.words {
            if let Some(place) = places.get(id) {
                spelled[*place] = word.to_string();
            }
        }
        spelled
    }
}

/// Calls back with every word of a text: lower case, identifiers as a whole and by their parts, plurals as singulars.
fn for_each_word(text: &str, mut found: impl FnMut(&str)) {
    let mut word = String::new();
    for identifier in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
        if identifier.is_empty() || identifier.chars().count() > WORD_CHARS_MAX {
            continue;
        }
        let mut parts = 0;
        let mut part = |from: usize, to: usize, parts: &mut u32| {
            if from < to {
                *parts += 1;
                lower(&identifier[from..to], &mut word);
                found(singular(&word));
            }
        };
        let mut from = 0;
        let mut before: Option<(char, usize)> = None;
        let mut letters = identifier.char_indices().peekable();
        while let Some((at, letter)) = letters.next() {
            let next = letters.peek().map(|(_, next)| *next);
            if letter == '_' {
                part(from, at, &mut parts);
                from = at + 1;
            } else if let Some((last, _)) = before {
                let rises = last.is_lowercase() && letter.is_uppercase();
                // The last capital of `HTTPServer` begins a part.
                let ends = last.is_uppercase() && letter.is_uppercase() && next.is_some_and(char::is_lowercase);
                if (rises || ends) && from < at {
                    part(from, at, &mut parts);
                    from = at;
                }
            }
            before = Some((letter, at));
        }
        part(from, identifier.len(), &mut parts);
        if parts > 1 {
            lower(identifier, &mut word);
            found(&word);
        }
    }
}

fn lower(text: &str, word: &mut String) {
    word.clear();
    word.extend(text.chars().flat_map(char::to_lowercase));
}

fn singular(word: &str) -> &str {
    match word.strip_suffix('s') {
        Some(stem) if stem.len() >= 3 && !stem.ends_with(['s', 'u', 'i']) => stem,
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        for_each_word(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn identifiers_count_as_a_whole_and_by_their_parts() {
        assert_eq!(
            words("parse_configs(HTTPServer)"),
            ["parse", "config", "parse_configs", "http", "server", "httpserver"]
        );
        assert_eq!(words("x1 größe status class"), ["x1", "größe", "status", "class"]);
        assert_eq!(words(&"a".repeat(65)), Vec::<String>::new());
        assert_eq!(words("__init__"), ["init"]);
    }

    #[test]
    fn stop_words_are_in_order() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn rare_words_and_names_count_more_and_what_was_found_is_said() {
        let mut index = Lexical::default();
        let store = index.insert(&[("fn open(path) { retry(open_store) }", 1), ("Store", 3)]);
        let other = index.insert(&[("fn close(path) { open; open; open }", 1), ("Other", 3)]);
        let found = index.search("where is the store opened: open store", 10, |_| true);
        assert_eq!(found.iter().map(|m| m.doc).collect::<Vec<_>>(), [store, other]);
        assert_eq!(found[0].words, ["store", "open"]);
        assert_eq!(found[1].words, ["open"]);
        assert_eq!(index.search("open", 10, |doc| doc == other).len(), 1);
        assert!(index.search("nowhere", 10, |_| true).is_empty());
    }

    #[test]
    fn what_is_removed_is_not_found_and_counts_no_more() {
        let mut index = Lexical::default();
        let docs: Vec<Doc> = (0..3_000).map(|i| index.insert(&[(&format!("common unique{i}"), 1)])).collect();
        for doc in &docs[..2_900] {
            index.remove(*doc);
            index.remove(*doc);
        }
        assert!(index.is_worn());
        assert!(index.search("unique5", 10, |_| true).is_empty());
        let mut fresh = Lexical::default();
        for i in 2_900..3_000 {
            fresh.insert(&[(&format!("common unique{i}"), 1)]);
        }
        let score = |index: &Lexical| index.search("common unique2950", 1, |_| true)[0].score;
        assert!((score(&index) - score(&fresh)).abs() < 1e-6);
    }
}
