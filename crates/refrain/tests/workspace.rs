//! What ARCHITECTURE.md promises about the source itself, asserted.

use refrain_testkit::workspace_root;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates of the workspace a crate may use, tests aside.
const GRAPH: &[(&str, &[&str])] = &[
    ("refrain-model", &[]),
    ("refrain-program", &["refrain-model"]),
    ("refrain-device", &[]),
    ("refrain-cpu", &["refrain-program", "refrain-device"]),
    ("refrain-gpu", &["refrain-program", "refrain-device"]),
    ("refrain-cuda", &["refrain-device"]),
    ("refrain-hip", &["refrain-device"]),
    ("refrain-sim", &["refrain-device"]),
    ("refrain-engine", &["refrain-program", "refrain-device"]),
    ("refrain-server", &["refrain-engine", "refrain-model"]),
    ("refrain-bench", &["refrain-engine", "refrain-server"]),
    ("refrain-testkit", &["refrain-model", "refrain-program", "refrain-device"]),
    // A tool of the repository and no part of the program, so it may take the compilers of the tests.
    (
        "xtask",
        &[
            "refrain-model",
            "refrain-program",
            "refrain-device",
            "refrain-gpu",
            "refrain-cuda",
            "refrain-hip",
            "refrain-testkit",
        ],
    ),
    (
        "refrain",
        &[
            "refrain-model",
            "refrain-program",
            "refrain-device",
            "refrain-cpu",
            "refrain-gpu",
            "refrain-cuda",
            "refrain-hip",
            "refrain-sim",
            "refrain-engine",
            "refrain-server",
            "refrain-bench",
        ],
    ),
];

/// Crates in which `unsafe` may be written anywhere; `refrain-model` may map files in one file.
const UNSAFE_CRATES: &[&str] =
    &["refrain-cpu", "refrain-device", "refrain-gpu", "refrain-cuda", "refrain-hip", "refrain-sim"];

const MAX_LINES: usize = 600;

fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Files below `folder` with one of the extensions, target folders aside.
fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files(&path, extensions, found);
        } else if path.extension().is_some_and(|ext| extensions.iter().any(|wanted| ext == *wanted)) {
            found.push(path);
        }
    }
}

/// Sources by their path from the root.
fn sources(extensions: &[&str]) -> BTreeMap<String, String> {
    let root = workspace_root();
    let mut found = Vec::new();
    for folder in ["crates", "fuzz", "tools", ".ci"] {
        files(&root.join(folder), extensions, &mut found);
    }
    assert!(!found.is_empty());
    let text = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(text).collect()
}

/// The code of a line without a comment at its end. Good enough for words that don't stand in string literals.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

#[test]
fn crates_depend_in_one_direction() {
    let allowed: BTreeMap<&str, &[&str]> = GRAPH.iter().copied().collect();
    let packages = packages();
    let names: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    assert_eq!(names, allowed.keys().copied().collect(), "a crate is missing in this test or in the workspace");
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        for dependency in package["dependencies"].as_array().unwrap() {
            let (on, kind) = (dependency["name"].as_str().unwrap(), &dependency["kind"]);
            let in_workspace = names.contains(on) && kind != "dev";
            assert!(!in_workspace || allowed[name].contains(&on), "{name} must not depend on {on}");
        }
    }
}

#[test]
fn every_crate_has_the_workspace_lints_and_licence() {
    for package in packages() {
        let path = package["manifest_path"].as_str().unwrap();
        let manifest = std::fs::read_to_string(path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{path} lacks the workspace lints");
        assert_eq!(package["license"], "Apache-2.0", "{path}");
    }
}

#[test]
fn no_source_file_is_long() {
    let long: Vec<String> = sources(&["rs", "py"])
        .iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|&(_, lines)| lines > MAX_LINES)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "split what is longer than {MAX_LINES} lines: {long:#?}");
}

#[test]
fn unsafe_stays_where_it_belongs() {
    let mut in_model = BTreeSet::new();
    for (name, text) in sources(&["rs"]) {
        if UNSAFE_CRATES.iter().any(|krate| name.starts_with(&format!("crates/{krate}/"))) {
            continue;
        }
        // This very test names the word in strings.
        let lines = text.lines().filter(|line| !name.ends_with("tests/workspace.rs") && has_word(code(line), "unsafe"));
        for line in lines {
            assert!(name.starts_with("crates/refrain-model/src/"), "{name}: {line}");
            in_model.insert(name.clone());
        }
    }
    assert!(in_model.len() <= 1, "refrain-model needs it in the one file that maps weights: {in_model:?}");
}

#[test]
fn crates_without_unsafe_forbid_it() {
    for (name, _) in GRAPH {
        let lib = std::fs::read_to_string(workspace_root().join(format!("crates/{name}/src/lib.rs"))).unwrap();
        let wanted = match *name {
            "refrain-model" => "#![deny(unsafe_code)]",
            name if UNSAFE_CRATES.contains(&name) => continue,
            _ => "#![forbid(unsafe_code)]",
        };
        assert!(lib.contains(wanted), "crates/{name}/src/lib.rs lacks {wanted}");
    }
}

/// Environment variables mean exactly what a flag means, so only the command line reads them.
#[test]
fn only_the_command_line_reads_the_environment() {
    for (name, text) in sources(&["rs"]) {
        let product = name.contains("/src/") && !name.starts_with("crates/refrain-testkit/");
        let command_line = ["crates/refrain/src/cli", "crates/refrain/src/main.rs"];
        let allowed = command_line.iter().any(|path| name.starts_with(path));
        let reads = |line: &&str| ["env::var", "env::vars"].iter().any(|call| code(line).contains(call));
        if product && !allowed {
            assert_eq!(text.lines().find(reads), None, "{name} reads the environment");
        }
    }
}

/// A map that names files which don't exist is worse than none.
#[test]
fn the_architecture_page_names_files_that_exist() {
    let page = std::fs::read_to_string(workspace_root().join("ARCHITECTURE.md")).unwrap();
    let sources = sources(&["rs", "py"]);
    let paths = page.split('`').skip(1).step_by(2).filter(|quoted| quoted.ends_with(".rs") || quoted.ends_with(".py"));
    let mut named = 0;
    for path in paths {
        // `server/src/...` is short for `crates/refrain-server/src/...`.
        let exists = sources.keys().any(|name| name == path || name.ends_with(&format!("/{path}")))
            || path.split_once("/src/").is_some_and(|(krate, rest)| {
                let short = if krate == "refrain" { "refrain".to_owned() } else { format!("refrain-{krate}") };
                sources.contains_key(&format!("crates/{short}/src/{rest}"))
            });
        assert!(exists, "ARCHITECTURE.md names {path}, which doesn't exist");
        named += 1;
    }
    assert!(named > 50, "only {named} files are named");
}
