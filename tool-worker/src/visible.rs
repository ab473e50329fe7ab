//! What a tool says is data, and all of it is visible.
//!
//! Files and pages can hold characters that a reader does not see and a model, a terminal or a log does: escape
//! sequences, marks that turn the direction of text, characters without width, letters hidden in tags. They are shown
//! as what they are. What looks like a model's own markup stays as it is: it is the inference worker that keeps contents
//! from becoming markup, and code about such markup must stay readable.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with everything visible: line ends are `\n`, tabs stay, control characters have pictures, what else cannot
/// be seen is written as `\u{…}`.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut characters = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    let mut before = ' ';
    while let Some(character) = characters.next() {
        let after = characters.peek().copied();
        match character {
            '\r' if after == Some('\n') => {}
            '\u{200c}' | '\u{200d}' if joins(before) && after.is_some_and(joins) => shown.push(character),
            '\0'..='\u{1f}' if is_hidden(character) => shown.push(picture(character as u32)),
            '\u{7f}' => shown.push('\u{2421}'),
            _ if is_hidden(character) => {
                write!(shown, "\\u{{{:x}}}", character as u32).expect("a string takes everything");
            }
            _ => shown.push(character),
        }
        before = character;
    }
    Cow::Owned(shown)
}

/// Owned, without a copy where nothing is hidden.
pub(crate) fn visible_owned(text: String) -> String {
    match visible(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(shown) => shown,
    }
}

/// A control character's picture: `␛` for escape.
fn picture(code: u32) -> char {
    char::from_u32(0x2400 + code).expect("the block of pictures has one for each")
}

/// Letters and signs that are joined without being ASCII: scripts such as Persian, and families of emoji.
fn joins(character: char) -> bool {
    !character.is_ascii() && !is_hidden(character) && !character.is_whitespace()
}

/// Whether a reader would not see it, or see something else than what stands there.
fn is_hidden(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        _ if character.is_control() => true,
        // A soft hyphen, a grapheme joiner, fillers of Hangul and Khmer.
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}' => true,
        // No width, direction, isolates, invisible operators.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' => true,
        // Not characters, by definition; the inference worker uses one.
        '\u{fdd0}'..='\u{fdef}' => true,
        // Private to whoever wrote them.
        '\u{e000}'..='\u{f8ff}' | '\u{f0000}'.. => true,
        // Tags, and selectors beyond the sixteen that emoji use.
        '\u{e0000}'..='\u{e0fff}' => true,
        _ => character as u32 & 0xfffe == 0xfffe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_is_not_even_copied() {
        for text in ["fn main() {\n\treturn\n}\n", "naïve – “quoted” 日本語 👍🏽", "<tool_call>{}</tool_call>", ""]
        {
            assert!(matches!(visible(text), Cow::Borrowed(_)), "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_shown() {
        for (text, shown) in [
            ("a\x1b[31mred\x1b[0m", "a␛[31mred␛[0m"),
            ("\x1b]8;;http://evil\x07here", "␛]8;;http://evil␇here"),
            ("one\r\ntwo\rthree", "one\ntwo␍three"),
            ("nul\0 del\x7f next\u{85}line", "nul␀ del␡ next\\u{85}line"),
            ("if access\u{202e} }\u{2066}// admin\u{2069}", "if access\\u{202e} }\\u{2066}// admin\\u{2069}"),
            ("pass\u{200b}word \u{2062}x\u{feff}", "pass\\u{200b}word \\u{2062}x\\u{feff}"),
            ("hi\u{e0068}\u{e0069}", "hi\\u{e0068}\\u{e0069}"),
            ("\u{feff}begins", "begins"),
            ("a\u{fdd0}b\u{ffff}c\u{e123}", "a\\u{fdd0}b\\u{ffff}c\\u{e123}"),
            ("a\u{2028}b", "a\\u{2028}b"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn joined_letters_and_emoji_stay_together() {
        for text in ["می\u{200c}خواهم", "👩\u{200d}👩\u{200d}👧", "❤\u{fe0f}"] {
            assert_eq!(visible(text), text);
        }
        assert_eq!(visible("a\u{200d}b \u{200c}"), "a\\u{200d}b \\u{200c}");
    }

    #[test]
    fn nothing_stays_hidden_and_showing_again_changes_nothing() {
        let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        let shown = visible(&all).into_owned();
        let hidden = shown.chars().filter(|c| is_hidden(*c) && !matches!(c, '\u{200c}' | '\u{200d}')).count();
        assert_eq!(hidden, 0);
        assert_eq!(visible(&shown), shown);
    }
}
