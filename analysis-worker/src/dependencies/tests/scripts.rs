use super::{ImportKind, ImportRef, SourceFile, check, resolve};

#[test]
fn python_packages_sources_and_scripts() {
    let manifests =
        [("pyproject.toml", "[project]\nname = \"shop\"\n[tool.setuptools.packages.find]\nwhere = [\"src\"]\n")];
    check(
        &[
            ("src/shop/__init__.py", &[(".store", "src/shop/store.py"), (".", "src/shop/__init__.py")]),
            (
                "src/shop/store.py",
                &[
                    ("__future__", "(__future__)"),
                    ("os.path", "(os)"),
                    ("numpy", "(numpy)"),
                    ("shop.models", "src/shop/models/__init__.py"),
                    ("shop.models.cart", "src/shop/models/cart.py"),
                    ("shop.models.cart.Cart", "src/shop/models/cart.py"),
                    ("shop.gone.x", "?"),
                    ("shop.types.made.at_run_time", "src/shop/types.py"),
                    (".models", "src/shop/models/__init__.py"),
                    (".types", "src/shop/types.py"),
                    ("types", "(types)"),
                    ("....up", "?"),
                ],
            ),
            ("src/shop/types.py", &[]),
            ("src/shop/models/__init__.py", &[]),
            (
                "src/shop/models/cart.py",
                &[
                    ("..store", "src/shop/store.py"),
                    ("..", "src/shop/__init__.py"),
                    (".", "src/shop/models/__init__.py"),
                    ("...", "?"),
                    ("store", "(store)"),
                ],
            ),
            (
                "tests/test_store.py",
                &[("shop.store", "src/shop/store.py"), ("helpers", "tests/helpers.py"), ("pytest", "(pytest)")],
            ),
            ("tests/helpers.py", &[("shop", "src/shop/__init__.py")]),
            ("scripts/run.py", &[("queue", "scripts/queue.py"), ("shop.models.cart", "src/shop/models/cart.py")]),
            ("scripts/queue.py", &[]),
        ],
        &manifests,
    );
}

#[test]
fn python_namespaces_and_packages_of_a_monorepo() {
    check(
        &[
            (
                "services/a/src/acme/a/api.py",
                &[("acme.a.store", "services/a/src/acme/a/store.py"), ("acme.b.util", "services/b/acme/b/util.py")],
            ),
            (
                "services/a/src/acme/a/store.py",
                &[("acme.a", "services/a/src/acme/a/api.py+services/a/src/acme/a/store.py")],
            ),
            ("services/b/acme/b/__init__.py", &[]),
            ("services/b/acme/b/util.py", &[("yaml", "(yaml)"), ("acme.b", "services/b/acme/b/__init__.py")]),
        ],
        &[
            ("services/a/pyproject.toml", "[tool.poetry]\npackages = [{ include = \"acme\", from = \"src\" }]\n"),
            ("services/b/setup.cfg", "[options]\npackage_dir =\n    = .\n"),
        ],
    );
}

#[test]
fn scripts_leave_out_extensions_and_go_by_configured_names() {
    let manifests = [
        ("package.json", "{ \"name\": \"root\", \"workspaces\": [\"packages/*\"] }"),
        (
            "tsconfig.base.json",
            "{ // shared\n \"compilerOptions\": { \"baseUrl\": \".\", \"paths\": { \"@lib/*\": [\"packages/lib/src/*\"], }, }, }",
        ),
        (
            "packages/app/tsconfig.json",
            "{ \"extends\": \"../../tsconfig.base\", \"compilerOptions\": { \"paths\": { \"@lib/*\": [\"packages/lib/src/*\"], \"~exact\": [\"packages/app/src/exact.ts\"], \"@lib/special/*\": [\"packages/app/src/special/*\"] } } }",
        ),
        (
            "packages/lib/package.json",
            "{ \"name\": \"@acme/lib\", \"main\": \"dist/index.js\", \"exports\": { \".\": { \"types\": \"./dist/index.d.ts\", \"default\": \"./dist/index.js\" }, \"./ui/*\": \"./dist/ui/*.js\" }, \"imports\": { \"#deep/*\": \"./src/deep/*.ts\" } }",
        ),
        ("packages/app/package.json", "{ \"name\": \"app\" }"),
    ];
    check(
        &[
            (
                "packages/app/src/main.ts",
                &[
                    ("./exact", "packages/app/src/exact.ts"),
                    ("./exact.js", "packages/app/src/exact.ts"),
                    ("./view", "packages/app/src/view/index.tsx"),
                    ("./view/", "packages/app/src/view/index.tsx"),
                    ("./style.css", "packages/app/src/style.css"),
                    ("./icon.svg?raw", "packages/app/src/icon.svg"),
                    ("./data", "packages/app/src/data.json"),
                    ("./gone", "?"),
                    ("../../../../outside", "?"),
                    ("~exact", "packages/app/src/exact.ts"),
                    ("@lib/button", "packages/lib/src/button.ts"),
                    ("@lib/special/one", "packages/app/src/special/one.ts"),
                    ("packages/lib/src/button", "packages/lib/src/button.ts"),
                    ("@acme/lib", "packages/lib/src/index.ts"),
                    ("@acme/lib/ui/menu", "packages/lib/src/ui/menu.ts"),
                    ("@acme/lib/src/button", "packages/lib/src/button.ts"),
                    ("@acme/lib/none", "?"),
                    ("@/exact", "packages/app/src/exact.ts"),
                    ("node:fs", "(node:fs)"),
                    ("fs/promises", "(fs)"),
                    ("@types/node/fs", "(@types/node)"),
                    ("react-dom/client", "(react-dom)"),
                    ("npm:chalk@5", "(chalk)"),
                    ("https://deno.land/x/oak/mod.ts", "(deno.land)"),
                    ("#deep/x", "?"),
                ],
            ),
            ("packages/app/src/exact.ts", &[]),
            ("packages/app/src/data.json", &[]),
            ("packages/app/src/icon.svg", &[]),
            (
                "packages/app/src/style.css",
                &[
                    ("./base.css", "packages/app/src/base.css"),
                    ("url(\"base.css\")", "packages/app/src/base.css"),
                    ("https://fonts.example/x", "(fonts.example)"),
                ],
            ),
            ("packages/app/src/base.css", &[("~normalize/x.css", "(normalize)"), ("gone.css", "?")]),
            ("packages/app/src/view/index.tsx", &[("..", "?"), (".", "packages/app/src/view/index.tsx")]),
            ("packages/app/src/special/one.ts", &[]),
            (
                "packages/lib/src/index.ts",
                &[("#deep/x", "packages/lib/src/deep/x.ts"), ("app/src/exact", "packages/app/src/exact.ts")],
            ),
            ("packages/lib/src/button.ts", &[]),
            ("packages/lib/src/deep/x.ts", &[("/src/button", "packages/lib/src/button.ts")]),
            ("packages/lib/src/ui/menu.ts", &[]),
        ],
        &manifests,
    );
}

#[test]
fn a_configuration_that_only_refers_to_others_speaks_through_them() {
    check(
        &[("web/src/a.ts", &[("$lib/b", "web/src/lib/b.ts")]), ("web/src/lib/b.ts", &[])],
        &[
            (
                "web/tsconfig.json",
                "{ \"files\": [], \"references\": [{ \"path\": \"./tsconfig.node.json\" }, { \"path\": \"./tsconfig.app.json\" }] }",
            ),
            ("web/tsconfig.app.json", "{ \"compilerOptions\": { \"paths\": { \"$lib/*\": [\"./src/lib/*\"] } } }"),
            ("web/tsconfig.node.json", "{}"),
        ],
    );
}

#[test]
fn php_names_by_prefix_and_files_by_path() {
    let manifest = "{ \"autoload\": { \"psr-4\": { \"Shop\\\\\": \"src/\", \"Shop\\\\Ui\\\\\": [\"ui/a\", \"ui/b\"] } }, \"autoload-dev\": { \"psr-4\": { \"Shop\\\\Tests\\\\\": \"tests/\" } } }";
    check(
        &[
            (
                "src/Store.php",
                &[
                    ("Shop\\Model\\Cart", "src/Model/Cart.php"),
                    ("\\Shop\\Model\\Cart", "src/Model/Cart.php"),
                    ("Shop\\Ui\\Menu", "ui/b/Menu.php"),
                    ("Shop\\Model\\total", "src/Model/functions.php"),
                    ("Shop\\Gone", "?"),
                    ("Symfony\\Component\\Yaml\\Yaml", "(Symfony)"),
                    ("Exception", "(Exception)"),
                    ("file __DIR__ . '/Model/Cart.php'", "src/Model/Cart.php"),
                    ("file tests/StoreTest.php", "tests/StoreTest.php"),
                ],
            ),
            ("src/Model/Cart.php", &[]),
            ("src/Model/functions.php", &[("def total", "")]),
            ("ui/b/Menu.php", &[]),
            (
                "tests/StoreTest.php",
                &[("Shop\\Store", "src/Store.php"), ("Shop\\Tests\\StoreTest", "tests/StoreTest.php")],
            ),
        ],
        &[("composer.json", manifest)],
    );
    check(&[("lib/A/B.php", &[("App\\A\\C", "lib/A/C.php"), ("C", "(C)")]), ("lib/A/C.php", &[])], &[]);
}

#[test]
fn ruby_lua_and_shell_look_where_their_programs_do() {
    check(
        &[
            (
                "lib/shop.rb",
                &[
                    ("shop/store", "lib/shop/store.rb"),
                    ("relative shop/store", "lib/shop/store.rb"),
                    ("json", "(json)"),
                    ("active_support/core_ext", "(active_support)"),
                ],
            ),
            (
                "lib/shop/store.rb",
                &[("relative ../shop", "lib/shop.rb"), ("relative gone", "?"), ("relative ../../../x", "?")],
            ),
            (
                "spec/store_spec.rb",
                &[
                    ("spec_helper", "spec/spec_helper.rb"),
                    ("shop/store", "lib/shop/store.rb"),
                    ("other", "gems/other/lib/other.rb"),
                ],
            ),
            ("spec/spec_helper.rb", &[]),
            ("gems/other/lib/other.rb", &[]),
            (
                "init.lua",
                &[("shop.store", "lua/shop/store.lua"), ("shop", "lua/shop/init.lua"), ("cjson.safe", "(cjson)")],
            ),
            ("lua/shop/init.lua", &[("shop.store", "lua/shop/store.lua")]),
            ("lua/shop/store.lua", &[("file init.lua", "lua/shop/init.lua"), ("file gone.lua", "?")]),
            (
                "scripts/run.sh",
                &[
                    ("./common.sh", "scripts/common.sh"),
                    ("\"$(dirname \"$0\")/common.sh\"", "scripts/common.sh"),
                    ("${BASH_SOURCE%/*}/../env.sh", "env.sh"),
                    ("$ROOT/scripts/common.sh", "scripts/common.sh"),
                    ("$FILE", "?"),
                    ("/etc/profile", "(/etc/profile)"),
                ],
            ),
            ("scripts/common.sh", &[("env.sh", "env.sh")]),
            ("env.sh", &[]),
        ],
        &[],
    );
}

#[test]
fn pages_hold_addresses() {
    check(
        &[
            (
                "web/index.html",
                &[
                    ("app.js", "web/app.js"),
                    ("./app.js?v=2", "web/app.js"),
                    ("/logo.svg", "web/public/logo.svg"),
                    ("https://cdn.example/x.js", "(cdn.example)"),
                    ("//cdn.example/x.js", "(cdn.example)"),
                    ("mailto:a@b.example", "(mailto)"),
                    ("#top", "?"),
                    ("../../x", "?"),
                ],
            ),
            ("web/app.js", &[]),
            ("web/public/logo.svg", &[]),
        ],
        &[],
    );
}

#[test]
fn what_python_takes_out_of_a_package_may_be_a_module() {
    let paths = ["pkg/__init__.py", "pkg/a.py", "pkg/b.py", "pkg/sub/c.py"];
    let target = |path, members: &[&str]| {
        let members: Vec<String> = members.iter().map(|member| (*member).to_owned()).collect();
        let import = ImportRef { path, kind: ImportKind::Relative, members: &members, at: None, line: 1 };
        let files = paths.map(|path| SourceFile {
            path,
            language: "python",
            imports: if path == "pkg/a.py" { std::slice::from_ref(&import) } else { &[] },
            ..SourceFile::default()
        });
        let dependencies = resolve(&files, &[]);
        dependencies.files["pkg/a.py"][0].target.files().join(" ")
    };
    assert_eq!(target(".", &["b"]), "pkg/b.py");
    assert_eq!(target(".", &["b", "sub"]), "pkg/b.py pkg/sub/c.py");
    assert_eq!(target("pkg", &["a", "b"]), "pkg/a.py pkg/b.py");
    assert_eq!(target("pkg", &["b", "VERSION"]), "pkg/__init__.py pkg/b.py");
    assert_eq!(target(".b", &["Name", "Other"]), "pkg/b.py");
    assert_eq!(target("pkg.sub", &["c"]), "pkg/sub/c.py");
}
