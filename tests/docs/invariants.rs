//! The index of docs/reliability.md: from each invariant to its judges and to what shows that they can fail, from each promise of the
//! documentation to its tests.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use testbed::mutations;

use super::helm::{read, root};

/// A sentence of the documentation, and the tests that show it.
#[derive(Deserialize)]
struct Promise {
    page: String,
    says: String,
    tests: Vec<String>,
}

/// Where the judges of an invariant are, and the mutations that break it.
#[derive(Default)]
struct Entry {
    /// The judges of every run, of real runs alone, and of simulated ones alone.
    judges: [BTreeSet<String>; 3],
    broken_by: BTreeSet<String>,
}

/// The two tables.
pub(super) fn index() -> String {
    let mut entries: BTreeMap<u32, Entry> = invariants().into_iter().map(|number| (number, Entry::default())).collect();
    let folders = ["tests/judge/src/judges", "tests/testbed/src/recorder", "tests/sim/src"];
    for (which, folder) in folders.into_iter().enumerate() {
        for (path, text) in sources(folder) {
            // What a test tells the recorder, and how it asks, is no judgment.
            if path.ends_with("recorder/declared.rs") || path.ends_with("recorder/mod.rs") {
                continue;
            }
            for number in judged_in(&path, &text) {
                let judges = &mut entries.entry(number).or_default().judges[which];
                judges.insert(path.strip_prefix(&format!("{folder}/")).unwrap().to_owned());
            }
        }
    }
    for (_, mutation) in mutations::all(&root()).unwrap() {
        let number = mutation.name.strip_prefix('I').and_then(|rest| rest.split('-').next()?.parse().ok());
        if let Some(number) = number {
            let (program, test) = mutation.test();
            let program = if program == "lib" { "src" } else { program };
            entries.entry(number).or_default().broken_by.insert(format!("{program} {test}"));
        }
    }
    let mut text = "| | judged over every run (`tests/judge/src/judges`) | over real runs alone (`tests/testbed/src/recorder`) | over simulated runs alone (`tests/sim/src`) | mutations | found by |\n|---|---|---|---|---|---|\n".to_owned();
    for (number, Entry { judges: [every, real, simulated], broken_by }) in &entries {
        assert!(!broken_by.is_empty(), "no mutation shows that I{number} can be broken and is noticed");
        let count = mutations_of(*number);
        let cells = [list(every), list(real), list(simulated), count.to_string(), list(broken_by)];
        text.push_str(&format!("| I{number} | {} |\n", cells.join(" | ")));
    }
    text.push_str("\n| promise | where | shown by |\n|---|---|---|\n");
    for Promise { page, says, tests } in promises() {
        let name = page.strip_prefix("docs/").unwrap();
        text.push_str(&format!("| {says} | [{name}]({name}) | {} |\n", list(&tests.into_iter().collect())));
    }
    text
}

fn mutations_of(number: u32) -> usize {
    let all = mutations::all(&root()).unwrap();
    all.iter().filter(|(_, mutation)| mutation.name.starts_with(&format!("I{number}-"))).count()
}

/// Those that the page lists.
fn invariants() -> Vec<u32> {
    let page = read("docs/reliability.md");
    page.lines()
        .filter_map(|line| line.strip_prefix("| I")?.split_once(' ')?.0.parse().ok())
        .collect::<BTreeSet<u32>>()
        .into_iter()
        .collect()
}

/// The invariants that a file judges: those with which its comments begin, and those that it complains of.
fn judged_in(path: &str, text: &str) -> BTreeSet<u32> {
    let number = |word: &str| word.strip_prefix('I')?.parse::<u32>().ok();
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim_start) {
        let Some(comment) = line.strip_prefix("//! ").or(line.strip_prefix("/// ")) else { continue };
        let words = comment.split(' ').map(|word| word.trim_end_matches([',', ':']));
        let head: Vec<&str> = words.take_while(|word| number(word).is_some() || ["and", "to"].contains(word)).collect();
        match head.as_slice() {
            [first, "to", last] => found.extend(number(first).unwrap_or(1)..=number(last).unwrap_or(0)),
            head => found.extend(head.iter().filter_map(|word| number(word))),
        }
    }
    if ["crash.rs", "sim.rs"].iter().any(|name| path.ends_with(&format!("/{name}"))) {
        let complaints = text.split("Invariant::I").skip(1);
        found.extend(
            complaints.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()),
        );
    }
    found
}

fn promises() -> Vec<Promise> {
    serde_saphyr::from_str(&read("tests/docs/promises.yaml")).unwrap()
}

fn list(items: &BTreeSet<String>) -> String {
    items.iter().map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ")
}

/// Every Rust file below a folder, by its path.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            files.extend(sources(&path));
        } else if path.ends_with(".rs") {
            files.push((path.clone(), read(&path)));
        }
    }
    files.sort();
    files
}

#[test]
fn each_promise_stands_on_its_page_and_its_tests_exist() {
    let code: String = ["src", "tests"].iter().flat_map(|folder| sources(folder)).map(|(_, text)| text).collect();
    for Promise { page, says, tests } in promises() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&read(&page)).contains(&words(&says)), "{page} does not say: {says}");
        for test in tests {
            let name = test.rsplit("::").next().unwrap();
            assert!(code.contains(&format!("fn {name}(")), "{test} is no test");
        }
    }
}
