//! The dashboard on the metrics of a running operator: each panel's queries in Prometheus' own engine, by promtool.

use std::collections::BTreeMap;

use ecr_credential_operator::api::OutputFormat;
use serde_json::{Value, json};
use testbed::bed::{Bed, Launch};

use super::alerts::{ALERTS, DASHBOARD, alerts, promtool};
use super::helm::{read, root};

/// What Prometheus adds to each series, which are what the variables of the dashboard choose from.
const SCRAPED: [(&str, &str); 4] =
    [("cluster", "here"), ("namespace", "eco"), ("job", "operator"), ("instance", "10.0.0.1:8080")];

#[tokio::test]
async fn each_panel_shows_series_of_a_running_operator_and_an_output_that_fails_everywhere_fires() {
    let bed = Bed::with_secret_names("dashboard", super::CRD, &["basic", "jenkins"]).await.unwrap();
    let a = bed.namespace("a", &[]).await.unwrap();
    let (basic, jenkins) = (bed.name("basic"), bed.name("jenkins"));
    // One of both outputs is not allowed, so it fails in every namespace.
    let launch = Launch::new(env!("CARGO_BIN_EXE_ecr-credential-operator")).output(&format!("*/{basic}=BasicAuth"));
    let operator = bed.operator(launch).await.unwrap();
    let outputs = json!([
        { "name": basic, "format": OutputFormat::BasicAuth.as_str(), "host": "public.ecr.aws" },
        { "name": jenkins, "format": OutputFormat::Jenkins.as_str(), "host": "public.ecr.aws" },
    ]);
    let spec = json!({
        "registries": [{ "private": {} }, { "public": {} }], "namespaces": { "names": [a] }, "outputs": outputs,
    });
    let name = bed.credential("x", spec).await.unwrap();
    bed.condition_until(&name, "Ready", "False", "OutputNotAllowed").await.unwrap();
    let (_, before) = operator.get("/metrics").await.unwrap();
    // Rates and increases take two scrapes, with something done between them.
    bed.request_refresh(&name, "1").await.unwrap();
    bed.refreshed(&name, "1").await.unwrap();
    let (_, after) = operator.get("/metrics").await.unwrap();
    operator.stop().await.unwrap();
    bed.finish().await.unwrap();

    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let chosen = |variable: &str, value: &str, query: &str| {
        let variables =
            SCRAPED.iter().take(3).map(|(name, found)| (*name, if *name == variable { value } else { found }));
        let query = variables.fold(query.to_owned(), |query, (name, value)| query.replace(&format!("${name}"), value));
        query.replace("$__rate_interval", "5m")
    };
    let mut expected = vec![];
    // At 12 minutes: the second scrape was at 11, so it is within the range of each rate.
    let mut expect = |query: &str, samples: Value| {
        expected.push(json!({ "expr": query, "eval_time": "12m", "exp_samples": samples }));
    };
    for query in queries(&dashboard) {
        expect(&format!("clamp_max(count({}), 1)", chosen("", "", &query)), json!([{ "labels": "{}", "value": 1 }]));
        for (variable, _) in &SCRAPED[..3] {
            expect(&format!("count({})", chosen(variable, "another", &query)), json!([]));
        }
    }
    // Each variable offers what was scraped.
    for (variable, value) in &SCRAPED[..3] {
        let all = dashboard["templating"]["list"].as_array().unwrap();
        let definition = all.iter().find(|found| found["name"] == *variable).unwrap()["definition"].as_str().unwrap();
        let inner = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(")")).unwrap();
        let (series, label) = inner.rsplit_once(", ").unwrap();
        let labels = format!("{{{label}=\"{value}\"}}");
        expect(&format!("group by ({label}) ({})", chosen("", "", series)), json!([{ "labels": labels, "value": 1 }]));
    }
    let test = json!({
        "rule_files": ["alerts.yaml"],
        "tests": [{
            "interval": "1m",
            "input_series": series(&before, &after),
            "promql_expr_test": expected,
            "alert_rule_test": [{ "eval_time": "40m", "alertname": "EcrOutputsUnsynced", "exp_alerts": [fired("Jenkins")] }],
        }],
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(root().join(ALERTS), folder.path().join("alerts.yaml")).unwrap();
    let file = folder.path().join("dashboard_test.yaml");
    std::fs::write(&file, test.to_string()).unwrap();
    promtool(&["test", "rules", &file.to_string_lossy()]);
}

/// The alert on the outputs of a format, as it fires for one namespace.
fn fired(format: &str) -> Value {
    let alerts = alerts();
    let alert = alerts.iter().find(|alert| alert["alert"] == "EcrOutputsUnsynced").unwrap();
    let of = [("{{ $value }}", "1"), ("{{ $labels.format }}", format), ("{{ $labels.state }}", "failed")];
    let text = |annotation: &str| {
        let template = alert["annotations"][annotation].as_str().unwrap().to_owned();
        of.iter().fold(template, |text, (from, to)| text.replace(from, to))
    };
    let mut labels = json!({ "severity": alert["labels"]["severity"], "format": format, "state": "failed" });
    for (name, value) in &SCRAPED[..3] {
        labels[*name] = json!(value);
    }
    let annotations = json!({ "summary": text("summary"), "description": text("description") });
    json!({ "exp_labels": labels, "exp_annotations": annotations })
}

/// Two scrapes as promtool takes them: the first one for 11 minutes, then the second one.
fn series(before: &str, after: &str) -> Vec<Value> {
    let (before, after) = (samples(before), samples(after));
    assert!(after.len() > 50, "{after:?}");
    let at_first = |key: &str| before.get(key).map_or("_x10".to_owned(), |value| format!("{value}x10"));
    let values = |key: &str, value: &str| format!("{} {value}x60", at_first(key));
    after.iter().map(|(key, value)| json!({ "series": key, "values": values(key, value) })).collect()
}

/// The samples of a scrape by series, each with what Prometheus adds.
fn samples(metrics: &str) -> BTreeMap<String, String> {
    let added: Vec<String> = SCRAPED.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let added = added.join(",");
    let lines = metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let series = match series.strip_suffix('}') {
                Some(labelled) => format!("{labelled},{added}}}"),
                None => format!("{series}{{{added}}}"),
            };
            (series, value.to_owned())
        })
        .collect()
}

/// The queries of a dashboard's panels.
pub(crate) fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels
        .flat_map(|panel| {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{} shows nothing", panel["title"]);
            targets.iter().map(|target| target["expr"].as_str().unwrap().to_owned())
        })
        .collect()
}
