use crate::analysis::{Limits, analyze};

/// `kind container.name start-end`, one a symbol: small enough to compare whole files.
fn symbols(path: &str, code: &str) -> Vec<String> {
    let analysis = analyze(path, code, &Limits::default(), || false).unwrap();
    let line = |symbol: &super::Symbol| {
        let container = symbol.container.as_ref().map(|name| format!("{name}.")).unwrap_or_default();
        let local = if symbol.local { "local " } else { "" };
        format!("{local}{} {container}{} {}-{}", symbol.kind, symbol.name, symbol.start_line, symbol.end_line)
    };
    analysis.symbols.iter().map(line).collect()
}

fn signatures(path: &str, code: &str) -> Vec<String> {
    let analysis = analyze(path, code, &Limits::default(), || false).unwrap();
    analysis.symbols.into_iter().map(|symbol| symbol.signature).collect()
}

const RUST: &str = r#"//! A store.
use std::fmt;

pub const LIMIT: usize = 8;
static SEEN: u8 = 0;

#[derive(Debug)]
pub struct Store<T> {
    items: Vec<T>,
}

enum State { Open, Closed }

pub trait Keep {
    type Item;
    fn keep(&mut self, item: Self::Item);
}

impl<T> Keep for store::Store<T> {
    type Item = T;
    fn keep(&mut self, item: T) {
        fn local() {}
        self.items.push(item)
    }
}

mod inner {
    pub async fn open(
        path: &str,
    ) -> u8 { 0 }
}

macro_rules! shout { () => {} }
type Short = Store<u8>;
"#;

#[test]
fn rust() {
    assert_eq!(
        symbols("a.rs", RUST),
        [
            "constant LIMIT 4-4",
            "variable SEEN 5-5",
            "struct Store 8-10",
            "field Store.items 9-9",
            "enum State 12-12",
            "variant State.Open 12-12",
            "variant State.Closed 12-12",
            "trait Keep 14-17",
            "type Keep.Item 15-15",
            "method Keep.keep 16-16",
            "type Store.Item 20-20",
            "method Store.keep 21-24",
            "local function keep.local 22-22",
            "module inner 27-31",
            "function inner.open 28-30",
            "macro shout 33-33",
            "type Short 34-34",
        ]
    );
    let signatures = signatures("a.rs", RUST);
    assert_eq!(signatures[2], "pub struct Store<T>");
    assert_eq!(signatures[9], "fn keep(&mut self, item: Self::Item)");
    assert_eq!(signatures[14], "pub async fn open( path: &str, ) -> u8");
}

const PYTHON: &str = r#""""A store."""
LIMIT = 8
state: dict[str, int] = {}

class Store(Base):
    kind = "store"

    @property
    def size(self) -> int:
        def local(): ...
        return 0

    class Inner:
        async def deep(self): ...

@cached
def open_store(path: str,
               mode: str = "r") -> Store:
    return Store()

if True:
    def guarded(): pass
else:
    def guarded_otherwise(): pass
"#;

#[test]
fn python() {
    assert_eq!(
        symbols("a.py", PYTHON),
        [
            "constant LIMIT 2-2",
            "variable state 3-3",
            "class Store 5-14",
            "field Store.kind 6-6",
            "method Store.size 8-11",
            "local function size.local 10-10",
            "class Store.Inner 13-14",
            "method Inner.deep 14-14",
            "function open_store 16-19",
            "function guarded 22-22",
            "function guarded_otherwise 24-24",
        ]
    );
    let signatures = signatures("a.py", PYTHON);
    assert_eq!(signatures[2], "class Store(Base)");
    assert_eq!(signatures[4], "def size(self) -> int");
    assert_eq!(signatures[8], "def open_store(path: str, mode: str = \"r\") -> Store");
}

const JAVASCRIPT: &str = r#"import fs from 'fs';
const LIMIT = 8;
let state;
export const open = async (path) => { const local = 1; };
export default function start() {}
function* walk() {}
class Store extends Base {
  #secret = 1;
  get size() { return 0; }
  load = () => {};
}
exports.helper = function () {};
module.exports.VERSION = '1';
const { a, b } = require('x');
const View = () => <div>{a}</div>;
"#;

#[test]
fn javascript_with_jsx() {
    assert_eq!(
        symbols("a.jsx", JAVASCRIPT),
        [
            "constant LIMIT 2-2",
            "variable state 3-3",
            "function open 4-4",
            "function start 5-5",
            "function walk 6-6",
            "class Store 7-11",
            "field Store.#secret 8-8",
            "method Store.size 9-9",
            "method Store.load 10-10",
            "function helper 12-12",
            "variable VERSION 13-13",
            "function View 15-15",
        ]
    );
    assert_eq!(signatures("a.js", JAVASCRIPT)[5], "class Store extends Base");
}

const TYPESCRIPT: &str = r#"export interface Item { id: string }
export type Id = string | number;
enum Color { Red }
declare function outside(id: Id): void;
namespace Deep { export function inner(): void {} }
@sealed
export abstract class Store<T> {
  constructor(private items: T[]) {}
  abstract keep(item: T): void;
  private find = (id: Id): T | undefined => undefined;
}
const identity = <T,>(x: T): T => x;
"#;

#[test]
fn typescript_and_tsx() {
    let expected = [
        "interface Item 1-1",
        "field Item.id 1-1",
        "type Id 2-2",
        "enum Color 3-3",
        "variant Color.Red 3-3",
        "function outside 4-4",
        "module Deep 5-5",
        "function Deep.inner 5-5",
        "class Store 7-11",
        "method Store.constructor 8-8",
        "method Store.keep 9-9",
        "method Store.find 10-10",
        "function identity 12-12",
    ];
    assert_eq!(symbols("a.ts", TYPESCRIPT), expected);
    assert_eq!(symbols("a.tsx", TYPESCRIPT), expected);
    assert_eq!(signatures("a.ts", TYPESCRIPT)[8], "abstract class Store<T>");
}

const GO: &str = r#"package store

import "fmt"

const Limit = 8
const (
	A, B = 1, 2
	C = iota
)

var state int
var (
	x, y = 1, 2
)

type Store[T any] struct {
	items []T
}
type Keeper interface{ Keep() }
type ID string
type Alias = Store[int]

func Open(path string) (*Store[int], error) {
	return nil, nil
}

func (s *Store[T]) Keep(item T) { fmt.Println(item) }
"#;

#[test]
fn go() {
    assert_eq!(
        symbols("a.go", GO),
        [
            "constant Limit 5-5",
            "constant A 7-7",
            "constant B 7-7",
            "constant C 8-8",
            "variable state 11-11",
            "variable x 13-13",
            "variable y 13-13",
            "struct Store 16-18",
            "field Store.items 17-17",
            "interface Keeper 19-19",
            "method Keeper.Keep 19-19",
            "type ID 20-20",
            "type Alias 21-21",
            "function Open 23-25",
            "method Store.Keep 27-27",
        ]
    );
    assert_eq!(signatures("a.go", GO)[14], "func (s *Store[T]) Keep(item T)");
}

#[test]
fn containers_are_told_as_a_path() {
    let code = "mod a { mod b { impl Store { fn keep() {} } } }\nimpl Store { fn drop() {} }\n";
    let analysis = analyze("a.rs", code, &Limits::default(), || false).unwrap();
    let paths: Vec<Option<&str>> = analysis.symbols.iter().map(|symbol| symbol.container_path.as_deref()).collect();
    assert_eq!(paths, [None, Some("a"), Some("a::b::Store"), Some("Store")]);
}

#[test]
fn what_is_bound_in_a_function_is_no_definition() {
    let code = "function f() { const hidden = 1; const inner = () => { let deeper; }; class Local { field = 1 } }\n\
                describe('x', () => { const also = 1; function helper() {} });\n";
    assert_eq!(
        symbols("a.js", code),
        [
            "function f 1-1",
            "local function f.inner 1-1",
            "local class f.Local 1-1",
            "local field Local.field 1-1",
            "local function helper 2-2",
        ]
    );
}
