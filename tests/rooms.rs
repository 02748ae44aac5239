//! Which room of the crate may use which, and which names the pure rooms never say (`ARCHITECTURE.md`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends with the first thing that goes wrong"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each room, and the rooms whose names it may use.
const ROOMS: [(&str, &[&str]); 22] = [
    ("encoding", &[]),
    ("answers", &[]),
    ("lenient", &[]),
    ("named", &[]),
    ("api", &["lenient", "named"]),
    ("attach", &["api"]),
    ("clock", &[]),
    ("plan", &["api", "encoding"]),
    ("token", &["api", "clock", "encoding", "named", "plan"]),
    ("secret", &["api", "encoding", "lenient", "plan", "token"]),
    ("apply", &["answers", "api", "attach", "lenient", "plan", "secret"]),
    ("outcome", &["api", "attach", "plan", "token"]),
    ("process", &["answers", "lenient"]),
    ("cluster", &["answers", "plan", "token"]),
    ("controller", &["answers", "api", "attach", "clock", "lenient", "plan", "token", "secret", "apply", "outcome"]),
    ("report", &["api", "plan", "token", "secret", "apply", "controller", "process"]),
    ("cli", &["api", "plan", "token", "process"]),
    ("check", &["api", "clock", "lenient", "plan", "token", "secret", "cluster", "controller", "process", "cli"]),
    ("crd", &["api", "run"]),
    (
        "operator",
        &["answers", "api", "clock", "plan", "token", "apply", "cluster", "controller", "process", "report", "cli"],
    ),
    ("run", &["api", "clock", "token", "process", "report", "cli", "operator"]),
    ("main", &["check", "cli", "crd", "process", "run"]),
];

/// What `token` gives to the pure rooms: values, nothing that talks to AWS.
const TOKEN_VALUES: [&str; 5] = ["AuthorizationToken", "DockerAuth", "Token", "TokenError", "TokenHash"];

const PURE: [&str; 7] = ["api", "attach", "encoding", "lenient", "plan", "secret", "outcome"];

/// Files of other rooms that are as pure.
const PURE_FILES: [&str; 7] =
    ["check/facts", "check/identities", "check/judge", "check/targets", "check/report", "check/rights", "check/text"];

/// Names of input and output, of clocks and of tasks: a pure room gets `now` as an argument.
const IMPURE: [&str; 13] = [
    "Client",
    "Api",
    "tokio",
    "async",
    "await",
    "spawn",
    "Timestamp::now",
    "Instant",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::net",
    "rand",
];

/// A name, and the only files or rooms that may say it.
const RESERVED: [(&str, &[&str]); 20] = [
    ("aws_config", &["token"]),
    ("aws_credential_types", &["token"]),
    ("aws_runtime", &["token"]),
    ("aws_sdk_ecr", &["token"]),
    ("aws_sdk_ecrpublic", &["token"]),
    ("aws_sdk_sts", &["token"]),
    ("aws_smithy_async", &["token"]),
    ("aws_smithy_http_client", &["token"]),
    ("aws_smithy_runtime", &["token"]),
    ("aws_smithy_runtime_api", &["token"]),
    ("aws_smithy_types", &["token"]),
    ("PostParams", &["apply", "check/gather", "cluster", "process/lease"]),
    ("PatchParams", &["apply", "process/lease"]),
    ("DeleteParams", &["apply", "process/lease"]),
    ("Recorder", &["controller/events"]),
    (
        "Api<",
        &[
            "apply",
            "check/gather",
            "process/lease",
            "controller/watches",
            "controller/references",
            "controller/service_accounts",
        ],
    ),
    ("http::Request", &["cluster", "process/fence"]),
    ("std::env", &["cli"]),
    ("env::var", &["cli"]),
    ("process::exit", &[]),
];

#[test]
fn every_room_uses_only_what_it_may() {
    let complaints: Vec<String> = sources().iter().flat_map(|(file, text)| complaints(file, text)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn no_room_may_use_what_it_does_not_use() {
    let sources = sources();
    let uses = |room: &str, other: &str| {
        let mut of_room = sources.iter().filter(|(file, _)| file.split('/').next() == Some(room));
        // The program is outside of the crate.
        of_room.any(|(_, text)| text.contains(&format!("crate::{other}")) || room == "main" && says(&code(text), other))
    };
    let surplus = ROOMS.iter().flat_map(|(room, others)| others.iter().map(move |other| (room, other)));
    let surplus: Vec<_> = surplus.filter(|(room, other)| !uses(room, other)).collect();
    assert!(surplus.is_empty(), "{surplus:?}");
}

#[test]
fn the_table_of_the_architecture_says_the_same() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let names = |cell: &str| -> BTreeSet<String> {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(|name| name.trim_end_matches('/').trim_end_matches(".rs").to_owned()).collect()
    };
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.rsplit_once(" | "));
    let told: BTreeMap<String, BTreeSet<String>> = rows
        .flat_map(|(row, uses)| {
            let modules = row.split(" | ").next().unwrap_or_default();
            names(&format!("`{modules}")).into_iter().map(move |module| (module, names(uses)))
        })
        .collect();
    let rules: BTreeMap<String, BTreeSet<String>> =
        ROOMS.map(|(room, uses)| (room.to_owned(), uses.iter().map(|name| (*name).to_owned()).collect())).into();
    assert_eq!(told, rules);
}

#[test]
fn every_file_begins_with_the_sentence_that_is_its_job() {
    for (file, text) in sources() {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! ") && text.contains('.'), "{file}.rs begins with {first:?}");
    }
}

#[test]
fn files_form_no_circle() {
    let uses = uses(&sources());
    let circles = circles(&uses);
    let told: Vec<String> = circles.iter().map(|circle| described(circle, &uses)).collect();
    assert!(told.is_empty(), "circles of files:\n{}", told.join("\n"));
}

#[test]
fn a_circle_of_files_is_found_and_described() {
    type Case = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);
    let table: [Case; 8] = [
        (
            "two files",
            &[("plan/auth", "use super::targets::Uid;"), ("plan/targets", "use super::auth::{AuthPlan, Base};")],
            &["plan/auth uses plan/targets; plan/targets uses plan/auth"],
        ),
        (
            "three files, one of which is used in a tree, and one by its path in code",
            &[
                ("token/a", "use crate::{api, token::{b::{C, D}, errors}};"),
                ("token/b", "fn f() -> super::c::Value {}"),
                ("token/c", "use super::super::token::a::A;"),
            ],
            &["token/a uses token/b; token/b uses token/c; token/c uses token/a"],
        ),
        (
            "files of two modules",
            &[("plan/mod", "use crate::api::auth::Auth;"), ("api/auth", "use crate::plan::Uid;")],
            &["api/auth uses plan; plan uses api/auth"],
        ),
        (
            "two circles",
            &[
                ("a", "use crate::b::B;"),
                ("b", "use crate::a::A;"),
                ("c", "use crate::{d, a};"),
                ("d", "use super::c::C;"),
            ],
            &["a uses b; b uses a", "c uses d; d uses c"],
        ),
        ("a chain", &[("a", "use crate::b::B;"), ("b", "use crate::c::C;"), ("c", "")], &[]),
        (
            "a module's own file gathers what its files have",
            &[("plan/mod", "mod auth;\nuse auth::AuthPlan;"), ("plan/auth", "use super::Uid;")],
            &[],
        ),
        (
            "comments, texts and tests",
            &[
                ("a", "use crate::b::B;"),
                ("b", "// use crate::a::A;\nlet x = \"crate::a\";\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}"),
            ],
            &[],
        ),
        ("a file that uses itself", &[("a", "use crate::a::A;"), ("b/c", "use super::c::C;")], &[]),
    ];
    for (name, files, expected) in table {
        let files: Vec<_> = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        let uses = uses(&files);
        let told: Vec<String> = circles(&uses).iter().map(|circle| described(circle, &uses)).collect();
        assert_eq!(told, expected, "{name}");
    }
}

#[test]
fn breaking_any_rule_is_noticed() {
    for (file, text, says) in [
        ("api/mod", "use crate::plan::Uid;", "api/mod uses plan"),
        ("plan/refresh", "use crate::{api, secret::Desired};", "plan/refresh uses secret"),
        ("plan/mod", "fn f(n: super::token::Token) {}", "plan/mod uses token"),
        (
            "secret/mod",
            "use crate::token::{DockerAuth, cache::TokenCache};",
            "secret/mod uses token::cache, which is no value",
        ),
        ("outcome", "use crate::apply::Written;", "outcome uses apply"),
        ("process/lease", "use crate::api::EcrCredential;", "process/lease uses api"),
        ("newroom", "", "newroom is in no room"),
        ("plan/schedule", "let now = jiff::Timestamp::now();", "plan/schedule says Timestamp::now"),
        ("secret/mod", "use std::time::{Duration, Instant};", "secret/mod says Instant"),
        ("api/mod", "use kube::{Client, CustomResource};", "api/mod says Client"),
        ("outcome", "async fn f() {}", "outcome says async"),
        ("check/judge", "let now = Timestamp::now();", "check/judge says Timestamp::now"),
        ("report", "use aws_sdk_ecr::Client;", "report says aws_sdk_ecr"),
        (
            "controller/cluster_state",
            "api.delete(name, &DeleteParams::default());",
            "controller/cluster_state says DeleteParams",
        ),
        ("run", "let home = std::env::var(\"HOME\");", "run says std::env"),
        ("run", "let api: Api<Secret> = Api::all(client);", "run says Api<"),
        ("run", "std::process::exit(1)", "run says process::exit"),
    ] {
        assert_eq!(complaints(file, text), [says], "{text}");
    }
    for (file, text) in [
        ("plan/mod", "// use crate::secret::Desired;\nlet text = \"crate::apply tokio Instant\";"),
        ("plan/mod", "use crate::api::Reason;\n#[cfg(test)]\nmod tests { use crate::apply::Writer; }"),
        ("plan/targets", "use super::Uid; mod inner { use super::super::Uid; }"),
        ("secret/mod", "use crate::token::{AuthorizationToken, DockerAuth};"),
    ] {
        assert_eq!(complaints(file, text), Vec::<String>::new(), "{text}");
    }
}

/// What is wrong with a file; `file` is its path below `src` without `.rs`.
fn complaints(file: &str, text: &str) -> Vec<String> {
    let room = file.split('/').next().unwrap_or_default();
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return if file == "lib" { vec![] } else { vec![format!("{file} is in no room")] };
    };
    let code = code(text);
    let mut complaints = BTreeSet::new();
    for path in paths(&code, room, file) {
        let used = path.first().map(String::as_str).unwrap_or_default();
        let is_room = ROOMS.iter().any(|(name, _)| *name == used);
        if is_room && used != room && !allowed.contains(&used) {
            complaints.insert(format!("{file} uses {used}"));
        }
        let item = path.get(1).map(String::as_str).unwrap_or_default();
        if used == "token" && is_pure(room, file) && allowed.contains(&"token") && !TOKEN_VALUES.contains(&item) {
            complaints.insert(format!("{file} uses token::{item}, which is no value"));
        }
    }
    if is_pure(room, file) {
        complaints.extend(IMPURE.iter().filter(|name| says(&code, name)).map(|name| format!("{file} says {name}")));
    }
    for (name, places) in RESERVED {
        if says(&code, name)
            && !places.iter().any(|place| *place == file || *place == room)
            && !pure_says(room, file, name)
        {
            complaints.insert(format!("{file} says {name}"));
        }
    }
    // `std::env::var` is one mistake, not two.
    if complaints.iter().any(|c| c.ends_with("says std::env")) {
        complaints.retain(|c| !c.ends_with("says env::var"));
    }
    complaints.into_iter().collect()
}

fn pure_says(room: &str, file: &str, name: &str) -> bool {
    is_pure(room, file) && IMPURE.contains(&name)
}

fn is_pure(room: &str, file: &str) -> bool {
    PURE.contains(&room) || PURE_FILES.contains(&file)
}

/// Code alone: no comments, no texts, no tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut code = String::new();
    for line in text.lines() {
        let mut in_text = false;
        let mut before = ' ';
        for (at, c) in line.char_indices() {
            if c == '"' && before != '\\' && before != '\'' {
                in_text = !in_text;
            }
            if !in_text && line[at..].starts_with("//") {
                break;
            }
            if !in_text {
                code.push(c);
            }
            before = c;
        }
        code.push('\n');
    }
    code
}

/// Every path that begins at the root of the crate, as its first two names; `use` trees are unfolded.
fn paths(code: &str, room: &str, file: &str) -> Vec<Vec<String>> {
    let mut found = vec![];
    for (at, _) in code.match_indices("crate::") {
        if !ends_with_name_character(&code[..at]) {
            unfold(&code[at + "crate::".len()..], &mut vec![], &mut found);
        }
    }
    for (at, _) in code.match_indices("ecr_credential_operator::") {
        unfold(&code[at + "ecr_credential_operator::".len()..], &mut vec![], &mut found);
    }
    // In a room's own file, `super` is the root of the crate.
    if file == room || file == format!("{room}/mod") {
        for (at, _) in code.match_indices("super::") {
            unfold(&code[at + "super::".len()..], &mut vec![], &mut found);
        }
    }
    found
}

/// Reads a path or a tree of paths, and returns what is left of the text.
fn unfold<'a>(mut text: &'a str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let depth = prefix.len();
    loop {
        text = text.trim_start();
        if let Some(inside) = text.strip_prefix('{') {
            text = inside;
            loop {
                text = unfold(text, prefix, found).trim_start();
                match text.strip_prefix(',') {
                    Some(rest) if !rest.trim_start().starts_with('}') => text = rest,
                    Some(rest) => text = rest.trim_start(),
                    None => break,
                }
                if text.starts_with('}') {
                    break;
                }
            }
            text = text.strip_prefix('}').unwrap_or(text);
            prefix.truncate(depth);
            return text;
        }
        let end = text.find(|c: char| !is_name_character(c)).unwrap_or(text.len());
        prefix.push(text[..end].to_owned());
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => text = rest,
            None => break,
        }
    }
    found.push(prefix.clone());
    prefix.truncate(depth);
    // `as name` is no path.
    text.strip_prefix(" as ").map_or(text, |rest| rest.trim_start_matches(is_name_character))
}

/// The files that each file uses by a path from the root of the crate or with `super`. A module's own file is named as the module; that
/// it uses the files of its module by their plain names does not count.
fn uses(sources: &[(String, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let module = |file: &str| file.strip_suffix("/mod").unwrap_or(file).to_owned();
    let modules: BTreeSet<String> = sources.iter().map(|(file, _)| module(file)).collect();
    let used = |own: &str, path: Vec<String>| {
        let file = (1..=path.len()).rev().map(|length| path[..length].join("/")).find(|file| modules.contains(file));
        file.filter(|file| file != own)
    };
    let of = |(file, text): &(String, String)| {
        let own = module(file);
        let found = full_paths(&code(text), &own).into_iter().filter_map(|path| used(&own, path)).collect();
        (own, found)
    };
    sources.iter().map(of).collect()
}

/// Every path in the code of a module that begins at the root of the crate or with `super`, in full.
fn full_paths(code: &str, module: &str) -> Vec<Vec<String>> {
    let mut full = vec![];
    for first in ["crate::", "super::"] {
        for (at, _) in code.match_indices(first) {
            if ends_with_name_character(&code[..at]) || code[..at].ends_with(':') {
                continue;
            }
            let mut found = vec![];
            unfold(&code[at + first.len()..], &mut vec![], &mut found);
            for path in found {
                let ups = path.iter().take_while(|name| *name == "super").count();
                let from: Vec<&str> = module.split('/').collect();
                let base = if first == "crate::" { 0 } else { from.len().saturating_sub(ups + 1) };
                let below = path[ups..].iter().map(String::as_str);
                full.push(from[..base].iter().copied().chain(below).map(str::to_owned).collect());
            }
        }
    }
    full
}

/// The groups of files that use each other, directly or through others.
fn circles(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let mut circles = BTreeSet::new();
    for file in uses.keys() {
        let mutual = |other: &&String| used_by(other, uses).contains(file);
        let circle: Vec<String> = used_by(file, uses).into_iter().filter(mutual).cloned().collect();
        circles.extend((!circle.is_empty()).then_some(circle));
    }
    circles.into_iter().collect()
}

/// All files that a file uses, directly or through others.
fn used_by<'a>(file: &str, uses: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a String> {
    let mut used = BTreeSet::new();
    let mut next: Vec<&String> = uses.get(file).into_iter().flatten().collect();
    while let Some(file) = next.pop() {
        if used.insert(file) {
            next.extend(uses.get(file).into_iter().flatten());
        }
    }
    used
}

fn described(circle: &[String], uses: &BTreeMap<String, BTreeSet<String>>) -> String {
    let links = circle.iter().flat_map(|file| circle.iter().map(move |other| (file, other)));
    let links = links.filter(|(file, other)| uses.get(*file).is_some_and(|used| used.contains(*other)));
    links.map(|(file, other)| format!("{file} uses {other}")).collect::<Vec<_>>().join("; ")
}

/// Whether code says a name as a whole word.
fn says(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let goes_on = ends_with_name_character(name) && code[at + name.len()..].starts_with(is_name_character);
        !ends_with_name_character(&code[..at]) && !goes_on
    })
}

fn is_name_character(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_with_name_character(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_name_character)
}

/// Every source file: its path below `src` without `.rs`, and its text. Files of tests alone are left out.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<PathBuf> = vec![];
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let name = |path: &Path| path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().into_owned();
    let mut sources: Vec<(String, String)> =
        files.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect();
    let tests: BTreeSet<String> = sources.iter().flat_map(|(file, text)| modules_of_tests(file, text)).collect();
    sources.retain(|(file, _)| !tests.contains(file) && !file.contains("/tests/"));
    sources.sort();
    assert!(sources.len() > 20, "the walk has found only {}", sources.len());
    sources
}

/// The files that a file has for tests alone.
fn modules_of_tests(file: &str, text: &str) -> Vec<String> {
    let folder = match file.rsplit_once('/') {
        Some((folder, "mod")) => format!("{folder}/"),
        None if file == "lib" || file == "main" => String::new(),
        _ => format!("{file}/"),
    };
    let declarations = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| rest.lines().next()?.split_once("mod "));
    declarations.filter_map(|(_, name)| Some(format!("{folder}{}", name.strip_suffix(';')?))).collect()
}
