//! The reference is current with the code. `UPDATE=1 cargo test --test docs current` writes what is generated.

use std::collections::BTreeSet;

use ecr_credential_operator::api::status::Reason;

use super::helm::{read, root};
use super::pages::{Page, pages};
use super::{api, cli, invariants, metrics};

const CURE: &str = "is not current; run: UPDATE=1 cargo test --test docs current";

/// Writes or compares a file.
fn same(path: &str, wanted: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join(path), wanted).unwrap();
    }
    let found = std::fs::read_to_string(root().join(path)).unwrap_or_default();
    assert!(found == wanted, "{path} {CURE}");
}

/// Writes or compares the part of a file between two marks.
fn same_part(path: &str, wanted: &str) {
    const BEGIN: &str = "<!-- generated: UPDATE=1 cargo test --test docs current -->\n";
    const END: &str = "<!-- end of what is generated -->";
    let text = read(path);
    let (before, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("{path} has no {BEGIN}"));
    let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{path} has no {END}"));
    same(path, &format!("{before}{BEGIN}\n{}\n\n{END}{after}", wanted.trim()));
}

#[test]
fn the_reference_of_the_api_is_current() {
    same_part("docs/reference/api.md", &api::reference());
}

#[test]
fn the_reference_of_the_command_line_is_current() {
    same_part("docs/reference/cli.md", &cli::reference());
}

#[test]
fn the_reference_of_the_metrics_is_current() {
    same_part("docs/reference/metrics.md", &metrics::reference(&read("src/process/telemetry.rs")));
}

#[test]
fn the_index_of_invariants_and_promises_is_current() {
    same_part("docs/reliability.md", &invariants::index());
}

#[test]
fn the_reference_of_the_values_is_current() {
    let mut text = String::new();
    for chart in ["ecr-credential-operator", "ecr-credential-operator-crds"] {
        let readme = read(&format!("charts/{chart}/README.md"));
        let (_, table) = readme.split_once("## Values\n").unwrap();
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
        text.push_str(&format!("## {chart}\n\n{}\n\n", rows.join("\n")));
    }
    same_part("docs/reference/values.md", &text);
}

#[test]
fn the_versions_that_are_said_to_be_tested_are_those_of_the_control_planes() {
    for module in ["controlplane", "controlplane-oldest"] {
        let path = format!("tests/{module}/go.mod");
        let text = read(&path);
        let (_, rest) = text.split_once("k8s.io/kubernetes v").unwrap();
        let version = rest.split_whitespace().next().unwrap();
        assert!(read("README.md").contains(&format!("[{version}]({path})")), "README.md lacks {version} of {path}");
        let chart = read("charts/ecr-credential-operator/README.md");
        assert!(chart.contains(version), "the README of the chart lacks {version} of {path}");
    }
}

fn title(page: &Page) -> &str {
    page.text.lines().next().unwrap().trim_start_matches("# ")
}

#[test]
fn the_list_of_decisions_is_current() {
    let decisions = pages().into_iter().filter(|page| page.path.starts_with("docs/decisions/2"));
    let line = |page: Page| format!("- [{}]({})\n", title(&page), page.path.rsplit('/').next().unwrap());
    same_part("docs/decisions/README.md", &decisions.map(line).collect::<String>());
}

#[test]
fn the_decisions_are_in_the_table_of_contents() {
    const PARENT: &str = "- [Decisions](decisions/README.md)\n";
    let decisions = pages().into_iter().filter(|page| page.path.starts_with("docs/decisions/2"));
    let line = |page: Page| format!("  - [{}]({})\n", title(&page), page.path.trim_start_matches("docs/"));
    let lines: String = decisions.map(line).collect();
    let summary = read("docs/SUMMARY.md");
    let others: String = summary.split_inclusive('\n').filter(|line| !line.contains("](decisions/2")).collect();
    assert!(others.contains(PARENT));
    same("docs/SUMMARY.md", &others.replace(PARENT, &format!("{PARENT}{lines}")));
}

#[test]
fn every_reason_of_the_code_is_explained_and_no_other() {
    let page = Page { path: String::new(), text: read("docs/reference/reasons.md") };
    let explained: BTreeSet<&str> = page.text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(explained, BTreeSet::from(Reason::ALL.map(Reason::as_str)));
    for part in page.text.split("\n### ").skip(1) {
        let (reason, _) = part.split_once('\n').unwrap();
        let says = |what: &str| part.split(what).nth(1).is_some_and(|text| text.trim().len() > 5);
        assert!(says("**Cause:**") && says("**Fix:**"), "{reason} lacks its cause or its fix");
    }
}

/// Whoever searches the page for the reason that kubectl shows finds it there.
#[test]
fn troubleshooting_has_every_reason_of_a_problem() {
    const NO_PROBLEM: [&str; 5] = ["Synced", "FetchingToken", "Refreshed", "IdentityChanged", "Attached"];
    let page = read("docs/troubleshooting.md");
    let mut missing = Reason::ALL.map(Reason::as_str).to_vec();
    missing.retain(|reason| !NO_PROBLEM.contains(reason) && !page.contains(&format!("`{reason}`")));
    assert!(missing.is_empty(), "docs/troubleshooting.md lacks {missing:?}");
}

/// Broken set-ups, by what kubectl, Helm or the consumer shows: whoever searches the page for that finds the cause beside it.
#[test]
fn troubleshooting_has_the_cause_of_what_people_see() {
    const SETUPS: [(&str, &str); 16] = [
        ("`403 Forbidden`", "the role that requested the token is not allowed to pull"),
        ("`Your authorization token has expired`", "the token has expired"),
        ("`pull access denied`", "the pod names no pull secret"),
        ("`FailedToRetrieveImagePullSecret`", "created before the pull secret"),
        ("`NoCredentials`", "created before the annotation or the Pod Identity association"),
        ("`sts:AssumeRoleWithWebIdentity`", "the trust policy"),
        ("`ghcr.io/pullsecrets/ecr-credential-operator`", "no release yet"),
        ("`exec format error`", "another architecture"),
        ("`No resources found`", "there is no EcrCredential"),
        ("`namespaces \"team-a\" not found`", "does not exist"),
        ("its log says nothing of the EcrCredential", "`credentialSelector`"),
        ("`invalid peer certificate`", "inspects TLS"),
        ("`SecretNotOwned`", "does not own"),
        ("`Conflict`", "another EcrCredential"),
        ("`Contested`", "another tool, or another installation of the operator, keeps changing the Secret"),
        ("`ComparisonError`", "the wrong format"),
    ];
    let page = read("docs/troubleshooting.md");
    // A paragraph, an entry of a list, or a row of a table.
    let mut parts: Vec<String> = vec![];
    for line in page.lines() {
        match parts.last_mut() {
            Some(part) if !line.is_empty() && !line.starts_with(['|', '-', '#']) => {
                *part += &format!(" {}", line.trim())
            }
            _ => parts.push(line.to_owned()),
        }
    }
    for (seen, cause) in SETUPS {
        assert!(parts.iter().any(|part| part.contains(seen) && part.contains(cause)), "{seen}: {cause}");
    }
}

#[test]
fn every_label_and_annotation_of_the_code_is_documented_and_no_other() {
    let page = Page { path: String::new(), text: read("docs/reference/labels.md") };
    let documented: BTreeSet<String> =
        page.code_spans().into_iter().filter(|span| span.starts_with("pullsecrets.dev/")).collect();
    let documented: BTreeSet<String> =
        documented.into_iter().filter(|key| key.len() > "pullsecrets.dev/".len()).collect();
    let mut used = BTreeSet::new();
    for folder in ["src", "charts/ecr-credential-operator/templates"] {
        keys(&root().join(folder), &mut used);
    }
    // The API version, and a path in the pod's file system.
    used.retain(|key| !["pullsecrets.dev/v1alpha1", "pullsecrets.dev/aws"].contains(&key.as_str()));
    assert_eq!(documented, used);
}

fn keys(path: &std::path::Path, keys_: &mut BTreeSet<String>) {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| keys(&entry.unwrap().path(), keys_));
        return;
    }
    let text = std::fs::read_to_string(path).unwrap();
    for rest in text.split("pullsecrets.dev/").skip(1) {
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-').collect();
        if !name.is_empty() {
            keys_.insert(format!("pullsecrets.dev/{name}"));
        }
    }
}
