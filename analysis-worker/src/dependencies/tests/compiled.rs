use super::{Definition, ImportKind, ImportRef, SourceFile, check, resolve};

#[test]
fn rust_modules_crates_and_names_passed_on() {
    let manifests = [
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\"core\", \"app\"]\n[workspace.dependencies]\nshop-core = { path = \"core\" }\n",
        ),
        (
            "core/Cargo.toml",
            "[package]\nname = \"shop-core\"\n[dependencies]\nserde = \"1\"\n[target.'cfg(unix)'.dependencies]\nrustix = \"1\"\n",
        ),
        (
            "app/Cargo.toml",
            "[package]\nname = \"app\"\n[lib]\nname = \"shop\"\npath = \"lib/shop.rs\"\n[[bin]]\nname = \"x\"\npath = \"cmd/x.rs\"\n\
             [dependencies]\nshop-core.workspace = true\nold_core = { package = \"shop-core\", path = \"../core\" }\n",
        ),
    ];
    check(
        &[
            (
                "core/src/lib.rs",
                &[
                    ("mod store", "core/src/store.rs"),
                    ("mod money", "core/src/money/mod.rs"),
                    ("mod platform at sys/unix.rs", "core/src/sys/unix.rs"),
                    ("mod absent", "?"),
                    ("store::Store", "core/src/store.rs"),
                    ("self::money::*", "core/src/money/mod.rs"),
                    ("platform::open", "core/src/sys/unix.rs"),
                    ("std::fmt", "(std)"),
                    ("fmt::Display", "(std)"),
                ],
            ),
            (
                "core/src/store.rs",
                &[
                    ("def Store", ""),
                    ("def Kind", ""),
                    ("mod index", "core/src/store/index.rs"),
                    ("crate::money::Amount", "core/src/money/amount.rs"),
                    ("crate::Store", "core/src/store.rs"),
                    ("crate::Amount", "core/src/money/amount.rs"),
                    ("Kind::*", "core/src/store.rs"),
                    ("self::index::Index", "core/src/store/index.rs"),
                    ("serde::Serialize", "(serde)"),
                    ("rustix::fs", "(rustix)"),
                    ("unknown_crate::X", "?"),
                ],
            ),
            (
                "core/src/store/index.rs",
                &[
                    ("def Index", ""),
                    ("super::Store", "core/src/store.rs"),
                    ("super::super::Store", "core/src/store.rs"),
                ],
            ),
            (
                "core/src/money/mod.rs",
                &[("mod amount", "core/src/money/amount.rs"), ("amount::Amount", "core/src/money/amount.rs")],
            ),
            ("core/src/money/amount.rs", &[("def Amount", ""), ("super::super::store", "core/src/store.rs")]),
            (
                "core/src/sys/unix.rs",
                &[
                    ("def open", ""),
                    ("crate::store::Store", "core/src/store.rs"),
                    ("super::Store", "core/src/store.rs"),
                ],
            ),
            (
                "core/tests/api.rs",
                &[("mod common", "core/tests/common/mod.rs"), ("shop_core::Store", "core/src/store.rs")],
            ),
            (
                "core/tests/common/mod.rs",
                &[("super::*", "core/tests/api.rs"), ("crate::common", "core/tests/common/mod.rs")],
            ),
            ("core/tests/other.rs", &[("alloc::vec::Vec", "(alloc)")]),
            ("app/lib/shop.rs", &[("mod cart", "app/lib/cart.rs"), ("cart::Cart", "app/lib/cart.rs")]),
            (
                "app/lib/cart.rs",
                &[
                    ("def Cart", ""),
                    ("shop_core::store::index::Index", "core/src/store/index.rs"),
                    ("old_core::Store", "core/src/store.rs"),
                    ("::shop_core::Store", "core/src/store.rs"),
                    ("super::Cart", "app/lib/cart.rs"),
                ],
            ),
            (
                "app/cmd/x.rs",
                &[
                    ("shop::Cart", "app/lib/cart.rs"),
                    ("mod args", "app/cmd/args.rs"),
                    ("shop::nothing::Here", "app/lib/shop.rs"),
                ],
            ),
            ("app/cmd/args.rs", &[("crate::args", "app/cmd/args.rs")]),
        ],
        &manifests,
    );
}

#[test]
fn rust_as_it_was_written_before_2018_and_modules_inside_modules() {
    check(
        &[
            ("src/lib.rs", &[("mod a", "src/a.rs"), ("extern_thing::X", "?")]),
            ("src/a.rs", &[("b::c::Deep", "src/b/c.rs"), ("std::io", "(std)")]),
            // `mod b { mod c; }` is written inside lib.rs.
            ("src/b/c.rs", &[("crate::b::c::d::E", "src/b/c/d.rs"), ("super::super::a", "src/a.rs")]),
            ("src/b/c/d.rs", &[("crate::a", "src/a.rs"), ("super::X", "src/b/c.rs")]),
        ],
        &[("Cargo.toml", "[package]\nname = \"old\"\n")],
    );
    check(
        &[("main.rs", &[("mod a", "a.rs"), ("serde::Serialize", "(serde)")]), ("a.rs", &[("crate::a", "a.rs")])],
        &[],
    );
}

#[test]
fn above_a_module_written_inside_a_file_is_the_file() {
    let import = |path, line| ImportRef { path, kind: ImportKind::Module, members: &[], at: None, line };
    let imports =
        [import("super::*", 2), import("super::super::b", 12), import("super::super::*", 22), import("super::b", 30)];
    let module =
        |name, line, end_line| Definition { kind: "module", name, container: None, signature: name, line, end_line };
    let symbols = [module("outer", 10, 25), module("inner", 20, 25), module("tests", 1, 5)];
    let file = |path| SourceFile { path, language: "rust", ..SourceFile::default() };
    let files =
        [SourceFile { imports: &imports, symbols: &symbols, ..file("src/a.rs") }, file("src/lib.rs"), file("src/b.rs")];
    let dependencies = resolve(&files, &[]);
    let targets: Vec<String> =
        dependencies.files["src/a.rs"].iter().map(|import| import.target.files().join(" ")).collect();
    assert_eq!(targets, ["src/a.rs", "src/b.rs", "src/a.rs", "src/b.rs"]);
}

#[test]
fn go_packages_are_directories() {
    let manifest = "module example.com/shop // the shop\n\ngo 1.24\n\nrequire (\n\tgithub.com/lib/pq v1.10.9\n\tgo.example.org/x/deep v0.1.0 // indirect\n)\n\
                    require golang.org/x/sync v0.1.0\nreplace example.com/tools => ./tools\n";
    check(
        &[
            (
                "cmd/shop/main.go",
                &[
                    ("fmt", "(fmt)"),
                    ("net/http", "(net/http)"),
                    ("C", "(C)"),
                    ("example.com/shop/store", "store/index.go+store/store.go"),
                    ("example.com/shop", "root.go"),
                    ("example.com/shop/gone", "?"),
                    ("example.com/tools/gen", "tools/gen/gen.go"),
                    ("github.com/lib/pq/oid", "(github.com/lib/pq)"),
                    ("go.example.org/x/deep/er/still", "(go.example.org/x/deep)"),
                    ("github.com/other/thing/v2/pkg", "(github.com/other/thing)"),
                    ("example.com/shopping", "(example.com/shopping)"),
                    ("example.org/vendored/x", "vendor/example.org/vendored/x/x.go"),
                    ("../../store", "store/index.go+store/store.go"),
                ],
            ),
            ("root.go", &[]),
            ("store/store.go", &[]),
            ("store/index.go", &[]),
            ("store/store_test.go", &[("example.com/shop/store", "store/index.go+store/store.go")]),
            ("store/README.md", &[]),
            ("tools/gen/gen.go", &[]),
            ("vendor/example.org/vendored/x/x.go", &[]),
        ],
        &[("go.mod", manifest)],
    );
}

#[test]
fn go_modules_inside_modules_come_first() {
    check(
        &[
            ("a.go", &[("m/sub/x", "sub/x/x.go"), ("m/y", "y/y.go")]),
            ("sub/x/x.go", &[("m/y", "y/y.go")]),
            ("y/y.go", &[]),
        ],
        &[("go.mod", "module m\n"), ("sub/go.mod", "module m/sub\n")],
    );
}

#[test]
fn packages_of_the_jvm_are_ends_of_paths() {
    const STORE: &str = "core/src/main/java/com/shop/store/Store.java";
    const INDEX: &str = "core/src/main/java/com/shop/store/Index.java";
    const TEST: &str = "core/src/test/java/com/shop/store/StoreTest.java";
    const CART: &str = "app/src/main/kotlin/cart/Cart.kt";
    const TEXT: &str = "app/src/main/kotlin/com/shop/text/Text.kt";
    check(
        &[
            (
                STORE,
                &[
                    ("java.util.List", "(java.util)"),
                    ("com.shop.store.Index", INDEX),
                    ("com.shop.store.Index.Entry", INDEX),
                    ("com.shop.store.Index.Entry.of", INDEX),
                    ("com.shop.store.Missing", "?"),
                    ("org.junit.jupiter.api.Test", "(org.junit.jupiter)"),
                    ("com.shop.store.*", &[INDEX, STORE, TEST].join("+")),
                    ("com.shop.store.Index.*", INDEX),
                    ("java.util.*", "(java.util)"),
                ],
            ),
            (INDEX, &[]),
            (TEST, &[("com.shop.store.Store", STORE)]),
            (
                CART,
                &[
                    ("com.shop.store.Store", STORE),
                    ("com.shop.text.capitalised", TEXT),
                    ("kotlin.math.max", "(kotlin.math.max)"),
                    ("Logger", "(Logger)"),
                ],
            ),
            (TEXT, &[("def capitalised", ""), ("com.shop.cart.Cart", CART)]),
            ("app/src/main/scala/com/shop/Main.scala", &[("_root_.com.shop.store._", &[INDEX, STORE, TEST].join("+"))]),
        ],
        &[],
    );
}

#[test]
fn includes_are_looked_for_where_headers_lie() {
    check(
        &[
            (
                "src/net/socket.c",
                &[
                    ("include socket.h", "src/net/socket.h"),
                    ("include ../util/log.h", "src/util/log.h"),
                    ("include util/log.h", "src/util/log.h"),
                    ("<shop/api.h>", "include/shop/api.h"),
                    ("<stdio.h>", "(stdio.h)"),
                    ("<sys/socket.h>", "(sys/socket.h)"),
                    ("<string.h>", "(string.h)"),
                    ("<vector>", "(vector)"),
                    ("<openssl/ssl.h>", "(openssl)"),
                    ("<zlib.h>", "third_party/zlib/zlib.h"),
                    ("include generated.h", "?"),
                    ("include twice.h", "?"),
                    ("include ../../../etc/passwd", "?"),
                ],
            ),
            ("src/net/socket.h", &[]),
            ("src/util/log.h", &[("\"log.h\"", "src/util/log.h")]),
            ("include/shop/api.h", &[]),
            ("compat/string.h", &[]),
            ("third_party/zlib/zlib.h", &[]),
            ("third_party/a/twice.h", &[]),
            ("third_party/b/twice.h", &[]),
        ],
        &[],
    );
}

#[test]
fn namespaces_of_csharp_are_directories_by_custom() {
    check(
        &[
            (
                "src/Shop.Core/Store/Store.cs",
                &[
                    ("System.Linq", "(System)"),
                    ("Shop.Core.Models", "src/Shop.Core/Models/Cart.cs+src/Shop.Core/Models/Item.cs"),
                    ("Shop.Core.Models.Item", "src/Shop.Core/Models/Item.cs"),
                    ("Shop.Core.Gone", "?"),
                    ("Newtonsoft.Json", "(Newtonsoft)"),
                ],
            ),
            ("src/Shop.Core/Models/Item.cs", &[]),
            ("src/Shop.Core/Models/Cart.cs", &[("Shop.Core.Store", "src/Shop.Core/Store/Store.cs")]),
        ],
        &[],
    );
}

#[test]
fn namespaces_of_csharp_are_where_files_say_they_are() {
    check(
        &[
            (
                "src/runtime/Types.cs",
                &[("def module Python.Runtime", ""), ("def class Types", ""), ("System", "(System)")],
            ),
            (
                "src/runtime/Engine.cs",
                &[("def module Python.Runtime", ""), ("Python.Runtime.Native", "src/native/A.cs")],
            ),
            (
                "src/native/A.cs",
                &[("def module Python.Runtime.Native", ""), ("Python.Runtime.Types", "src/runtime/Types.cs")],
            ),
            (
                "src/embed/Main.cs",
                &[
                    ("Python.Runtime", "src/runtime/Engine.cs+src/runtime/Types.cs"),
                    ("Python.Runtime.Absent", "?"),
                    ("runtime", "(runtime)"),
                ],
            ),
        ],
        &[],
    );
}

#[test]
fn modules_of_swift_are_no_files() {
    check(&[("Sources/App/main.swift", &[("Foundation", "(Foundation)")])], &[]);
}
