//! Alerts and dashboard: promtool's tests, a runbook for each alert, and no name that the operator does not serve.

use std::collections::BTreeSet;
use std::process::Command;

use ecr_credential_operator::api::status::Reason;
use serde_json::{Value, json};
use testbed::bed::{Bed, Launch};

use super::dashboard::queries;
use super::helm::{Helm, get, object, read, root};

pub(super) const ALERTS: &str = "charts/ecr-credential-operator/files/alerts.yaml";
pub(super) const DASHBOARD: &str = "charts/ecr-credential-operator/files/dashboard.json";

pub(super) fn alerts() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&read(ALERTS)).unwrap();
    rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

pub(super) fn promtool(args: &[&str]) {
    let folder = tempfolder();
    for file in [ALERTS, "tests/chart/promtool/alerts_test.yaml"] {
        let to = folder.join(file.rsplit('/').next().unwrap());
        std::fs::copy(root().join(file), to).unwrap();
    }
    let output = Command::new(get("promtool")).current_dir(&folder).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}:\n{out}{err}");
}

fn tempfolder() -> std::path::PathBuf {
    let thread = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
    let folder = std::env::temp_dir().join(format!("promtool-{}-{thread}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn the_alerts_fire_when_they_should_and_not_before() {
    promtool(&["test", "rules", "alerts_test.yaml"]);
    let tests = read("tests/chart/promtool/alerts_test.yaml");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} is never seen to fire");
    }
}

#[test]
fn each_alert_has_its_runbook_and_each_runbook_its_alert() {
    let names: BTreeSet<String> = alerts().iter().map(|a| a["alert"].as_str().unwrap().to_owned()).collect();
    let overview = read("docs/runbooks/README.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let page = read(&format!("docs/runbooks/{name}.md"));
        assert!(page.starts_with(&format!("# {name}\n")), "{name}.md has another title");
        let row = format!("| [{name}]({name}.md) | {} |", alert["labels"]["severity"].as_str().unwrap());
        assert!(overview.contains(&row), "the overview has no row {row}");
    }
    for entry in std::fs::read_dir(root().join("docs/runbooks")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().replace(".md", "");
        assert!(name == "README" || names.contains(&name), "docs/runbooks/{name}.md belongs to no alert");
    }
}

#[test]
fn the_runbooks_say_what_to_do_about_each_reason_of_the_operator_and_no_other() {
    let known = BTreeSet::from(Reason::ALL.map(Reason::as_str));
    // What is told of something that is well, or of the whole.
    let quiet = ["Attached", "Synced", "NoNamespaces", "Suspended", "FetchingToken", "Refreshed", "NamespacesFailed"];
    let mut missing: BTreeSet<&str> = known.iter().copied().filter(|reason| !quiet.contains(reason)).collect();
    for alert in alerts() {
        let page = read(&format!("docs/runbooks/{}.md", alert["alert"].as_str().unwrap()));
        for row in page.lines().filter(|line| line.starts_with("| `")) {
            let cell = row.split('|').nth(1).unwrap();
            for reason in cell.split('`').skip(1).step_by(2) {
                assert!(known.contains(reason), "{reason} is no reason: {row}");
                missing.remove(reason);
            }
        }
    }
    assert!(missing.is_empty(), "no runbook says what to do about {missing:?}");
}

#[test]
fn the_rule_that_the_chart_renders_has_every_alert_with_the_users_labels_and_the_runbook() {
    let values = json!({ "prometheusRule": {
        "enabled": true, "alertLabels": { "team": "platform", "severity": "page" }, "runbookUrl": "https://runbooks.example/",
    } });
    let objects = Helm::offline("v3").template("eco", "1.36.0", &values).unwrap();
    let rendered = object(&objects, "PrometheusRule", "")["spec"]["groups"][0]["rules"].as_array().unwrap().clone();
    let originals = alerts();
    assert_eq!(rendered.len(), originals.len());
    for (rendered, original) in rendered.iter().zip(&originals) {
        for key in ["alert", "expr", "for"] {
            assert_eq!(rendered[key], original[key]);
        }
        assert_eq!(rendered["labels"], json!({ "team": "platform", "severity": "page" }));
        let url = format!("https://runbooks.example/{}.md", original["alert"].as_str().unwrap());
        assert_eq!(rendered["annotations"]["runbook_url"], url);
        assert_eq!(rendered["annotations"]["description"], original["annotations"]["description"]);
    }
}

#[tokio::test]
async fn every_metric_that_is_asked_for_is_served() {
    let bed = Bed::with_secret_names("metrics", super::CRD, &["basic"]).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let basic = bed.name("basic");
    let launch = Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator"));
    let operator = bed.operator(launch.output(&format!("*/{basic}=BasicAuth"))).await.unwrap();
    let spec = json!({
        "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": [a] },
        "outputs": [{ "name": basic, "format": "BasicAuth", "host": "public.ecr.aws" }],
    });
    let name = bed.credential("x", spec).await.unwrap();
    bed.ready(&name).await.unwrap();
    let (status, metrics) = operator.get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    let served: BTreeSet<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();

    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut expressions: Vec<String> = alerts().iter().map(|a| a["expr"].as_str().unwrap().to_owned()).collect();
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    expressions.extend(queries(&dashboard));
    for expression in &expressions {
        asked.extend(names_in(expression));
    }
    // Their values are those of the status, not only there.
    let value = |name: &str| {
        let name = format!("ecr_credential_operator_{name} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
    };
    let status = bed.credentials().get(&name).await.unwrap().data["status"].clone();
    let seconds = |field: &str| {
        let time: k8s_openapi::jiff::Timestamp = status[field].as_str().unwrap().parse().unwrap();
        Some(time.as_second() as f64)
    };
    assert_eq!(value("earliest_secret_expiry_timestamp_seconds"), seconds("expiresAt"));
    assert_eq!(value("namespaces{state=\"synced\"}"), status["namespaces"]["synced"].as_f64());
    assert_eq!(value("outputs{format=\"BasicAuth\",state=\"synced\"}"), status["outputs"][0]["synced"].as_f64());
    assert_eq!((value("credentials{state=\"ready\"}"), value("leader")), (Some(1.0), Some(1.0)));

    let unknown: Vec<&String> = asked.iter().filter(|name| !served.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not among {served:#?}");
    let family = |name: &str| ["_bucket", "_count", "_sum"].iter().fold(name.to_owned(), |n, end| n.replace(end, ""));
    let asked: BTreeSet<String> = asked.iter().map(|name| family(name)).collect();
    let unused: BTreeSet<String> =
        served.iter().map(|name| family(name)).filter(|name| !asked.contains(name)).collect();
    assert!(unused.is_empty(), "nobody looks at {unused:?}");
    let typed =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect::<BTreeSet<_>>();
    assert!(typed.contains("process_cpu_seconds_total"), "{typed:?}");
    // Words that the alerts select by, which must be there from the beginning.
    for words in ["namespaces{state=\"failed\"}", "namespaces{state=\"pending\"}", "credentials{state=\"stalled\"}"] {
        assert!(metrics.contains(&format!("ecr_credential_operator_{words} 0")), "{words} is not in {metrics}");
    }
    assert!(
        metrics.contains("aws_requests_total{api=\"ecr\",identity=\"operator\",result=\"success\"} 1"),
        "{metrics}"
    );
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();
}

/// A dashboard for many clusters: every metric is narrowed by every variable, and Prometheus can read every query.
#[test]
fn each_query_of_the_dashboard_is_narrowed_by_its_variables_and_can_be_read() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "cluster", "namespace", "job"]);
    let narrowed = "{cluster=~\"$cluster\", namespace=~\"$namespace\", job=~\"$job\"";
    let mut rules = vec![];
    for query in queries(&dashboard) {
        let mut narrow = 0;
        for prefix in PREFIXES {
            for (at, name) in query.match_indices(prefix) {
                let rest = query[at + name.len()..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
                assert!(rest.starts_with(narrowed), "{query}");
                narrow += 1;
            }
        }
        // Every program has metrics of its process.
        assert!(!query.contains("process_") || narrow == 2, "{query} is not of the operator alone");
        let read = names[1..].iter().fold(query, |query, name| query.replace(&format!("${name}"), ".*"));
        let read = read.replace("$__rate_interval", "5m");
        rules.push(json!({ "record": format!("query:{}", rules.len()), "expr": read }));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yaml");
    std::fs::write(&file, json!({ "groups": [{ "name": "queries", "rules": rules }] }).to_string()).unwrap();
    promtool(&["check", "rules", &file.to_string_lossy()]);
}

/// How the names of metrics begin: our own, and those of every process.
const PREFIXES: [&str; 2] = ["ecr_credential_operator_", "process_"];

fn names_in(expression: &str) -> Vec<String> {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let words = expression.split(ends);
    words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}
