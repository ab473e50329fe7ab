//! Ends of things in text that comes piece by piece: each remembers how far it has looked.

/// Looks for a mark outside the strings of a JSON text.
#[derive(Debug, Default)]
pub(super) struct Quoted {
    scanned: usize,
    in_string: bool,
    escaped: bool,
}

impl Quoted {
    /// The place of the first such mark.
    pub(super) fn find(&mut self, text: &str, mark: &str) -> Option<usize> {
        while let Some(&byte) = text.as_bytes().get(self.scanned) {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else if byte == b'"' {
                self.in_string = true;
            } else if byte == mark.as_bytes()[0] {
                let rest = &text[self.scanned..];
                if rest.starts_with(mark) {
                    return Some(self.scanned);
                }
                if mark.starts_with(rest) {
                    return None;
                }
            }
            self.scanned += 1;
        }
        None
    }
}

/// Looks for the end of the first value in brackets.
#[derive(Debug)]
pub(super) struct Brackets {
    scanned: usize,
    depth: usize,
    quote: Option<u8>,
    escaped: bool,
    python: bool,
}

impl Brackets {
    /// With Python's strings and parentheses, or JSON's.
    pub(super) fn new(python: bool) -> Self {
        Self { scanned: 0, depth: 0, quote: None, escaped: false, python }
    }

    /// The place behind the bracket that closes the value. A value begins with the first `{`, or with a `[` that
    /// nothing stands before: a name in front may have marks of its own behind it.
    pub(super) fn end(&mut self, text: &str) -> Option<usize> {
        while let Some(&byte) = text.as_bytes().get(self.scanned) {
            self.scanned += 1;
            if let Some(quote) = self.quote {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    _ if byte == quote => self.quote = None,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' if self.depth > 0 => self.quote = Some(byte),
                b'\'' if self.depth > 0 && self.python => self.quote = Some(byte),
                b'{' => self.depth += 1,
                b'[' if self.depth > 0 || text[..self.scanned - 1].trim().is_empty() => self.depth += 1,
                b'(' if self.depth > 0 && self.python => self.depth += 1,
                b')' if !self.python => {}
                b'}' | b']' | b')' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(self.scanned);
                    }
                }
                _ => {}
            }
        }
        None
    }
}
