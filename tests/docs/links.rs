//! Every relative link, anchor and path in the documentation leads somewhere, and the book has every page.

use std::path::{Component, Path, PathBuf};

use super::helm::{read, root};
use super::pages::{Page, pages};

/// Where the paths begin that are checked in the text.
const FOLDERS: [&str; 8] = [".github/", "charts/", "crds/", "deploy/", "docs/", "hack/", "src/", "tests/"];

#[test]
fn every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading() {
    let pages = pages();
    let mut broken = vec![];
    let mut checked = 0;
    for page in &pages {
        for link in page.links().iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            checked += 1;
            if let Err(why) = follow(&pages, page, link) {
                broken.push(format!("{}: {link}: {why}", page.path));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(checked > 200, "only {checked} links were found");
}

fn follow(pages: &[Page], from: &Page, link: &str) -> Result<(), String> {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let folder = Path::new(&from.path).parent().unwrap();
    let target = if path.is_empty() { PathBuf::from(&from.path) } else { normal(&folder.join(path)) };
    if !root().join(&target).exists() {
        return Err(format!("there is no {}", target.display()));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let Some(page) = pages.iter().find(|page| Path::new(&page.path) == target) else {
        return Err(format!("{} is no page", target.display()));
    };
    let anchors = page.anchors();
    if anchors.iter().any(|other| other == anchor) { Ok(()) } else { Err(format!("no such heading, only {anchors:?}")) }
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => assert!(normal.pop(), "{} leads out of the project", path.display()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[test]
fn every_path_that_the_text_names_exists() {
    let mut missing = vec![];
    // A decision describes the day that it was made on.
    for page in pages().iter().filter(|page| !page.path.starts_with("docs/decisions/")) {
        for span in page.code_spans() {
            let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            let is_path = plain && FOLDERS.iter().any(|folder| span.starts_with(folder));
            if is_path && !root().join(&span).exists() {
                missing.push(format!("{}: {span}", page.path));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Nobody finds what no page names.
#[test]
fn every_sample_policy_and_set_of_values_is_named_by_a_page() {
    let pages = pages();
    let (mut unnamed, mut found) = (vec![], 0);
    for folder in ["deploy/iam", "deploy/samples", "deploy/values"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found += 1;
            if name != "README.md" && !pages.iter().any(|page| page.text.contains(&name)) {
                unnamed.push(format!("{folder}/{name}"));
            }
        }
    }
    assert!(unnamed.is_empty(), "no page names {}", unnamed.join(", "));
    assert!(found > 15, "only {found} were found");
}

#[test]
fn the_book_has_every_page() {
    let summary = Page { path: "docs/SUMMARY.md".to_owned(), text: read("docs/SUMMARY.md") };
    let listed: Vec<PathBuf> =
        summary.links().into_iter().map(|link| normal(&Path::new(&summary.path).with_file_name(link))).collect();
    for page in pages().iter().filter(|page| page.path.starts_with("docs/") && page.path != summary.path) {
        assert!(listed.contains(&PathBuf::from(&page.path)), "{} is not in docs/SUMMARY.md", page.path);
    }
}

/// Whoever follows the architecture by its names arrives.
#[test]
fn every_function_that_the_architecture_names_exists() {
    let page = Page { path: String::new(), text: read("ARCHITECTURE.md") };
    let mut sources = vec![];
    collect(&root().join("src"), &mut sources);
    let (mut missing, mut found) = (vec![], 0);
    for span in page.code_spans() {
        let Some((module, name)) = span.split_once("::") else { continue };
        let is_of = |path: &Path| {
            let (stem, folder) = (path.file_stem(), path.parent().and_then(Path::file_name));
            stem.is_some_and(|stem| stem == module)
                || (stem.is_some_and(|stem| stem == "mod") && folder.is_some_and(|folder| folder == module))
        };
        let defines = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).unwrap();
            ["(", "<"].iter().any(|next| text.contains(&format!("fn {name}{next}")))
        };
        if sources.iter().filter(|path| is_of(path)).any(defines) {
            found += 1;
        } else {
            missing.push(span);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(found > 20, "only {found} were found");
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
