//! The workflows run what is there, and nothing that someone else can exchange.

use super::helm::{read, root};

/// The workflows, by path, with their lines.
fn workflows() -> Vec<(String, String)> {
    let files = std::fs::read_dir(root().join(".github/workflows")).unwrap();
    let paths = files.map(|file| format!(".github/workflows/{}", file.unwrap().file_name().to_string_lossy()));
    paths.map(|path| (path.clone(), read(&path))).collect()
}

#[test]
fn every_action_is_pinned_by_its_commit() {
    let (mut loose, mut pinned) = (vec![], 0);
    for (path, text) in workflows() {
        for (_, action) in text.lines().filter_map(|line| line.split_once("uses: ")) {
            let (reference, version) = action.split_once(" # ").unwrap_or((action, ""));
            let commit = reference.split_once('@').map_or("", |(_, commit)| commit);
            if commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit()) && version.starts_with('v') {
                pinned += 1;
            } else {
                loose.push(format!("{path}: {action}"));
            }
        }
    }
    assert!(loose.is_empty(), "{}", loose.join("\n"));
    assert!(pinned > 5, "only {pinned} were found");
}

#[test]
fn every_script_of_a_workflow_exists() {
    let mut found = 0;
    for (path, text) in workflows() {
        let commands = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for word in commands.flat_map(|line| line.split([' ', '"', '(', ')'])) {
            if ["hack/", "tests/tools/", ".ci/"].iter().any(|folder| word.starts_with(folder)) {
                assert!(root().join(word).exists(), "{path}: {word}");
                found += 1;
            }
        }
    }
    assert!(found > 4, "only {found} were found");
}

#[test]
fn the_variables_that_the_release_reads_are_described() {
    let (release, guide) = (read(".github/workflows/release.yaml"), read("RELEASING.md"));
    let variables: Vec<&str> =
        release.split("vars.").skip(1).filter_map(|rest| rest.split([' ', '}']).next()).collect();
    assert!(!variables.is_empty());
    for variable in variables {
        assert!(guide.contains(&format!("`{variable}`")), "{variable} is not in RELEASING.md");
    }
}
