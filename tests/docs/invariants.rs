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
    real: BTreeSet<String>,
    simulated: BTreeSet<String>,
    broken_by: BTreeSet<String>,
}

/// The two tables.
pub(super) fn index() -> String {
    let mut entries: BTreeMap<u32, Entry> = invariants().into_iter().map(|number| (number, Entry::default())).collect();
    for (folder, simulated) in [("tests/testbed/src/recorder", false), ("tests/sim/src", true)] {
        for (path, text) in sources(folder) {
            for number in judged_in(&text) {
                let entry = entries.entry(number).or_default();
                let list = if simulated { &mut entry.simulated } else { &mut entry.real };
                list.insert(path.strip_prefix(&format!("{folder}/")).unwrap().to_owned());
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
    let mut text = "| | judged over real runs (`tests/testbed/src/recorder`) | simulated (`tests/sim/src`) | mutations | found by |\n|---|---|---|---|---|\n".to_owned();
    for (number, Entry { real, simulated, broken_by }) in &entries {
        assert!(!broken_by.is_empty(), "no mutation shows that I{number} can be broken and is noticed");
        let count = mutations_of(*number);
        let cells = [list(real), list(simulated), count.to_string(), list(broken_by)];
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

/// The invariants that the comments of a file say it judges.
fn judged_in(text: &str) -> BTreeSet<u32> {
    let heads = text.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("//! I").or(line.strip_prefix("/// I"))?;
        Some(format!("I{}", line.split(':').next()?))
    });
    let mut found = BTreeSet::new();
    for head in heads {
        let words: Vec<&str> = head.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let numbers: Option<Vec<u32>> = words
            .iter()
            .filter(|word| {
                ![
                    "and", "to", "at", "a", "write", "of", "the", "status", "with", "what", "changed", "lately",
                    "excused.",
                ]
                .contains(word)
            })
            .map(|word| word.strip_prefix('I')?.parse().ok())
            .collect();
        let Some(numbers) = numbers else { continue };
        match (words.contains(&"to"), numbers.as_slice()) {
            (true, [first, last]) => found.extend(*first..=*last),
            _ => found.extend(numbers),
        }
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
