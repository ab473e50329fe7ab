//! Cuts along the syntax tree: what fits stays whole, what does not is cut between its children, and small neighbours
//! are put together.

use std::ops::Range;

use tree_sitter::Node;

use crate::symbols::Symbol;

use super::Sizes;
use super::lines::Lines;

/// The pieces of a file as ranges of rows that follow each other without a gap.
pub(super) fn cut(root: Node<'_>, lines: &Lines<'_>, symbols: &[Symbol], sizes: Sizes) -> Vec<Range<usize>> {
    let mut functions: Vec<(usize, usize)> = symbols
        .iter()
        .filter(|symbol| symbol.kind.is_callable())
        .map(|symbol| (symbol.end_line - 1, symbol.start_line - 1))
        .collect();
    functions.sort_unstable();
    let mut cutter = Cutter { lines, sizes, functions, cuts: Vec::new() };
    if lines.count() > 0 {
        cutter.cut(root, 0..lines.count(), 0);
    }
    cutter.cuts
}

/// Trees are cut to this depth, and by lines below it: what nests deeper is data, and the walk is recursive.
const DEPTH_MAX: usize = 128;
/// A function belongs to the node it ends with if it begins this near: `export`, `template <…>`, a decorator.
const HEAD_ROWS_MAX: usize = 3;

struct Cutter<'a> {
    lines: &'a Lines<'a>,
    sizes: Sizes,
    /// Last and first rows of functions, sorted.
    functions: Vec<(usize, usize)>,
    cuts: Vec<Range<usize>>,
}

/// Children that share lines, and what leads up to them.
struct Unit<'t> {
    rows: Range<usize>,
    /// The child that is cut if the unit is too long.
    node: Node<'t>,
    /// Whether it belongs to what follows: a comment, an attribute, a heading.
    leads: bool,
}

impl Cutter<'_> {
    fn cut(&mut self, node: Node<'_>, rows: Range<usize>, depth: usize) {
        if self.is_whole(node, &rows) {
            self.cuts.push(rows);
            return;
        }
        // A long comment above a function that fits is cut off, so that the function stays whole.
        let first = node.start_position().row.clamp(rows.start, rows.end);
        if first > rows.start && self.is_function(node, &(first..rows.end)) {
            self.lines.cut(rows.start..first, self.sizes, &mut self.cuts);
            self.cuts.push(first..rows.end);
            return;
        }
        let units = self.units(node, &rows);
        match units.as_slice() {
            _ if depth >= DEPTH_MAX => self.lines.cut(rows, self.sizes, &mut self.cuts),
            [] => self.lines.cut(rows, self.sizes, &mut self.cuts),
            [only] => self.cut(only.node, rows, depth + 1),
            _ => self.merge(&units, depth),
        }
    }

    /// Puts small neighbours together and cuts what is too long.
    fn merge(&mut self, units: &[Unit<'_>], depth: usize) {
        let mut held: Option<Range<usize>> = None;
        for unit in units {
            let whole = self.is_whole(unit.node, &unit.rows);
            let start = match held.take() {
                None => unit.rows.start,
                Some(before) => {
                    let together = self.lines.bytes(before.start..unit.rows.end);
                    let slight = self.sizes.is_slight(self.lines.bytes(before.clone()));
                    let joins = together <= self.sizes.target || (slight && (!whole || together <= self.sizes.max));
                    if joins {
                        before.start
                    } else {
                        self.cuts.push(before);
                        unit.rows.start
                    }
                }
            };
            if whole {
                held = Some(start..unit.rows.end);
            } else {
                self.cut(unit.node, start..unit.rows.end, depth + 1);
            }
        }
        self.cuts.extend(held);
    }

    fn is_whole(&self, node: Node<'_>, rows: &Range<usize>) -> bool {
        self.lines.bytes(rows.clone()) <= self.sizes.target || self.is_function(node, rows)
    }

    /// Whether `node` is a function, or little more than one, and `rows` are few enough not to cut it.
    fn is_function(&self, node: Node<'_>, rows: &Range<usize>) -> bool {
        if self.lines.bytes(rows.clone()) > self.sizes.max {
            return false;
        }
        let (first, last) = (node.start_position().row, last_row(node));
        let at = self.functions.partition_point(|function| *function < (last, first));
        self.functions.get(at).is_some_and(|(end, start)| *end == last && *start <= first + HEAD_ROWS_MAX)
    }

    /// The children of `node` as units that cover `rows` without a gap.
    fn units<'t>(&self, node: Node<'t>, rows: &Range<usize>) -> Vec<Unit<'t>> {
        let mut units: Vec<Unit<'t>> = Vec::new();
        let mut next = rows.start;
        let mut cursor = node.walk();
        let mut more = cursor.goto_first_child();
        while more {
            let child = cursor.node();
            more = cursor.goto_next_sibling();
            let (first, end) = (child.start_position().row, last_row(child) + 1);
            // What ends on lines that are taken goes with them.
            if end <= next || first >= rows.end {
                continue;
            }
            let mut start = next;
            let leader = units.last().filter(|last| last.leads && !(next..first).any(|row| self.lines.is_blank(row)));
            if let Some(leader) = leader {
                start = leader.rows.start;
                units.pop();
            }
            let leads = first >= next && is_leader(child.kind());
            next = end.min(rows.end);
            units.push(Unit { rows: start..next, node: child, leads });
        }
        if let Some(last) = units.last_mut() {
            last.rows.end = rows.end;
        }
        units
    }
}

/// What stands before something belongs to it.
fn is_leader(kind: &str) -> bool {
    ["comment", "attribute", "decorator", "annotation", "heading", "marginalia"].iter().any(|word| kind.contains(word))
}

/// A node that ends with a line break ends on the line before it.
fn last_row(node: Node<'_>) -> usize {
    let (start, end) = (node.start_position(), node.end_position());
    if end.column == 0 && end.row > start.row { end.row - 1 } else { end.row }
}
