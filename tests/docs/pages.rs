//! The pages, and what they are made of: headings, links, code.

use std::path::{Path, PathBuf};

use super::helm::root;

/// A page of the documentation.
pub(crate) struct Page {
    /// Its path from the root of the project.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A fenced block of code.
pub(crate) struct Block {
    /// The page and the line, for messages.
    pub(crate) place: String,
    /// What stands behind the fence.
    pub(crate) info: String,
    pub(crate) text: String,
}

/// Every page that people read.
pub(crate) fn pages() -> Vec<Page> {
    let mut paths = Vec::new();
    for folder in [".github", "charts", "deploy", "docs"] {
        collect(&root().join(folder), &mut paths);
    }
    paths.extend(files(&root()));
    paths.sort();
    let pages = paths.into_iter().map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        Page { path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), text }
    });
    pages.collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    paths.extend(files(folder));
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file() && path.extension().is_some_and(|extension| extension == "md")).collect()
}

impl Page {
    /// The lines outside of blocks of code.
    pub(crate) fn prose(&self) -> Vec<&str> {
        let mut code = false;
        let mut prose = Vec::new();
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                code = !code;
            } else if !code {
                prose.push(line);
            }
        }
        prose
    }

    /// The blocks of code.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut lines = self.text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else { continue };
            let indent = line.len() - line.trim_start().len();
            let body = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
            let text: String = body.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect();
            blocks.push(Block { place: format!("{}:{}", self.path, number + 1), info: info.to_owned(), text });
        }
        blocks
    }

    /// The anchors of the headings, as GitHub and mdBook make them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for line in self.prose() {
            let heading = line.trim_start_matches('#');
            if heading.len() == line.len() || !heading.starts_with(' ') {
                continue;
            }
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            let anchor: String = text_of(heading.trim()).to_lowercase().chars().filter(kept).collect();
            let anchor = anchor.replace(' ', "-");
            let again = anchors.iter().filter(|other| **other == anchor).count();
            anchors.push(if again == 0 { anchor } else { format!("{anchor}-{again}") });
        }
        anchors
    }

    /// The targets of its links.
    pub(crate) fn links(&self) -> Vec<String> {
        let prose = self.prose().join("\n");
        let mut links = Vec::new();
        for (number, part) in prose.split('`').enumerate() {
            // Every other part is code, but a link's text may be code: then the target follows it.
            if number % 2 == 0 {
                links.extend(part.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
            }
        }
        links
    }

    /// What stands between backticks in its prose.
    pub(crate) fn code_spans(&self) -> Vec<String> {
        let lines = self.prose().join("\n");
        lines.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
    }
}

/// A heading without the marks of links and code.
fn text_of(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading;
    while let Some((before, link)) = rest.split_once('[') {
        let Some((words, after)) = link.split_once("](") else { break };
        text.push_str(before);
        text.push_str(words);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text + rest
}
