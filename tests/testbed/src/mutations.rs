//! Mutations: faults that are put into the operator on purpose, each with the cheapest test that finds it.
//!
//! `tests/mutations/*.yaml` lists them by class. A unit test checks that each still applies to the code and names a test that exists;
//! the program `mutations` builds each and wants that test to fail.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutation {
    /// Its name: short, unique, and where it breaks an invariant, with its number.
    pub name: String,
    /// What the operator does wrong with it.
    pub what: String,
    /// The file that is changed.
    pub file: String,
    /// The text in it, which it has once; how its lines are broken does not count.
    pub from: String,
    /// What stands there instead.
    pub to: String,
    /// A second change, where one is not enough.
    #[serde(default)]
    pub and: Option<Edit>,
    /// The test that finds it: `lib` or the name of a test program, then the beginning of the name of a test.
    pub by: String,
    /// What the output of the test has as well, such as the invariant that is broken.
    #[serde(default)]
    pub says: Option<String>,
    /// Variables for the test, such as the case of the simulation.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A text in a file that is replaced by another.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file.
    pub file: String,
    /// The text in it, which it has once; how its lines are broken does not count.
    pub from: String,
    /// What stands there instead.
    pub to: String,
}

impl Mutation {
    /// The changes.
    pub fn edits(&self) -> impl Iterator<Item = Edit> {
        let first = Edit { file: self.file.clone(), from: self.from.clone(), to: self.to.clone() };
        std::iter::once(first).chain(self.and.clone())
    }

    /// The test program and the filter for the test.
    pub fn test(&self) -> (&str, &str) {
        self.by.split_once(' ').unwrap_or((&self.by, ""))
    }
}

impl Edit {
    /// The file with the change.
    pub fn apply(&self, root: &Path) -> Result<String> {
        let text = fs::read_to_string(root.join(&self.file)).with_context(|| self.file.clone())?;
        let found = occurrences(&text, &self.from);
        let [range] = &found[..] else {
            bail!("{} has {} times, and not once:\n{}", self.file, found.len(), self.from)
        };
        let mut changed = text.clone();
        changed.replace_range(range.clone(), &self.to);
        Ok(changed)
    }
}

/// Where a text stands in another, however its lines are broken: whitespace does not count.
fn occurrences(text: &str, wanted: &str) -> Vec<Range<usize>> {
    let letters: Vec<(usize, char)> = text.char_indices().filter(|(_, c)| !c.is_whitespace()).collect();
    let wanted: Vec<char> = wanted.chars().filter(|c| !c.is_whitespace()).collect();
    let same = |window: &&[(usize, char)]| window.iter().map(|(_, c)| c).eq(&wanted);
    let ends = |window: &[(usize, char)]| match (window.first(), window.last()) {
        (Some((start, _)), Some((last, c))) => *start..last + c.len_utf8(),
        _ => 0..0,
    };
    letters.windows(wanted.len().max(1)).filter(same).map(ends).collect()
}

/// All mutations by class, the name of the file that they are in.
pub fn all(root: &Path) -> Result<Vec<(String, Mutation)>> {
    let mut files: Vec<_> = fs::read_dir(root.join("tests/mutations"))?.collect::<std::io::Result<_>>()?;
    files.sort_by_key(std::fs::DirEntry::path);
    let mut all = Vec::new();
    for file in files {
        let class = file.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let list: Vec<Mutation> =
            serde_saphyr::from_str(&fs::read_to_string(file.path())?).with_context(|| class.clone())?;
        all.extend(list.into_iter().map(|mutation| (class.clone(), mutation)));
    }
    if all.is_empty() {
        bail!("there are no mutations in tests/mutations");
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
    }

    /// All Rust source under a folder.
    fn source(folder: &Path) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                text += &source(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(path).unwrap();
            }
        }
        text
    }

    #[test]
    fn a_text_is_found_however_its_lines_are_broken() {
        let text = "f(\n    a,\n    b) + g(é, b)";
        for (wanted, found) in
            [("f(a, b)", vec![&text[..16]]), ("g(é,b)", vec!["g(é, b)"]), ("b)", vec!["b)", "b)"]), ("c", vec![])]
        {
            assert_eq!(
                occurrences(text, wanted).into_iter().map(|range| &text[range]).collect::<Vec<_>>(),
                found,
                "{wanted}"
            );
        }
    }

    #[test]
    fn every_mutation_applies_and_names_a_test_that_exists() {
        let root = root();
        let all = all(&root).unwrap();
        let (units, tests) = (source(&root.join("src")), source(&root.join("tests")));
        let mut wrong = Vec::new();
        for (class, mutation) in &all {
            for edit in mutation.edits() {
                if let Err(error) = edit.apply(&root) {
                    wrong.push(format!("{class}: {}: {error:#}", mutation.name));
                }
            }
            let (program, filter) = mutation.test();
            let test = filter.rsplit("::").next().unwrap_or_default();
            let there = if program == "lib" { &units } else { &tests };
            if test.is_empty() || !there.contains(&format!("fn {test}")) {
                wrong.push(format!("{class}: {} names the test {test:?}, which is not there", mutation.name));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let names: BTreeSet<&str> = all.iter().map(|(_, mutation)| mutation.name.as_str()).collect();
        assert_eq!(names.len(), all.len(), "each has a name of its own");
        assert!(all.len() >= 60, "{} mutations", all.len());
    }
}
