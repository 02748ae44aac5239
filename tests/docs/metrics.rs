//! The reference of the metrics, from the source that registers them. A registry shows no family that has no sample yet.

use std::collections::BTreeMap;
use std::fmt::Write;

use ecr_credential_operator::process::telemetry::Metrics;
use prometheus_client::registry::Registry;

const PREFIX: &str = "ecr_credential_operator_";

struct Metric {
    name: String,
    kind: &'static str,
    labels: Vec<String>,
    help: String,
}

/// One row for each metric.
pub(crate) fn reference(source: &str) -> String {
    let metrics = metrics(source);
    let mut text = "| metric | type | labels | description |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, labels, help } in &metrics {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), help.replace('|', "\\|")).unwrap();
    }
    // What a registry shows at once is a check on how the source is read.
    let mut registry = Registry::default();
    let _metrics = Metrics::register(&mut registry);
    let mut shown = String::new();
    prometheus_client::encoding::text::encode(&mut shown, &registry).unwrap();
    for line in shown.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let name = line.split(' ').next().unwrap();
        let is_it = |metric: &&Metric| metric.name.trim_end_matches("_total").trim_end_matches("_info") == name;
        assert!(metrics.iter().any(|metric| is_it(&metric)), "{name} is not found in the source");
    }
    text
}

fn metrics(source: &str) -> Vec<Metric> {
    let (code, _) = source.split_once("#[cfg(test)]").unwrap_or((source, ""));
    let mut fields = fields_of(code, "Metrics");
    fields.extend(fields_of(code, "ProcessMetrics"));
    let mut metrics = Vec::new();
    for (parenthesis, _) in code.match_indices('(') {
        let Some((before, function)) = code[..parenthesis].rsplit_once([' ', '.']) else { continue };
        let unit = match function {
            "metric" | "register" => "",
            "timestamp" => "_timestamp_seconds",
            "duration" => "_duration_seconds",
            _ => continue,
        };
        let arguments = arguments_of(&code[parenthesis + 1..]);
        let rest = arguments.iter().skip_while(|argument| quoted(argument).is_none()).collect::<Vec<_>>();
        // Where the name is not a literal, these functions themselves register.
        let [name, help, what @ ..] = rest.as_slice() else { continue };
        let name = quoted(name).expect("a name is what the rest begins with");
        let what = what.first().map_or("", |what| what.as_str());
        let field = before.trim_end_matches(':').rsplit(' ').next().unwrap();
        let type_ = fields.get(field).map(String::as_str);
        let (kind, suffix) = match type_ {
            Some(type_) if type_.contains("Counter") => ("counter", "_total"),
            Some(type_) if type_.contains("Histogram") => ("histogram", ""),
            Some(type_) if type_.contains("Gauge") => ("gauge", ""),
            _ if what.contains("Info::new") => ("info", "_info"),
            other => panic!("{name}: it cannot be told what kind of metric {other:?} is"),
        };
        let set = type_.and_then(|type_| type_.strip_prefix("Family<")?.split(',').next()).map(str::to_owned);
        let labels = match set {
            Some(set) => fields_in_order(code, &set),
            None if kind == "info" => {
                what.split("[(\"").skip(1).filter_map(|part| Some(part.split('"').next()?.to_owned())).collect()
            }
            None => Vec::new(),
        };
        let help = quoted(help).unwrap_or_else(|| panic!("{name} has no help"));
        // What all processes tell has the names that all clients of Prometheus give it.
        let prefix = if name.starts_with("process_") { "" } else { PREFIX };
        metrics.push(Metric { name: format!("{prefix}{name}{unit}{suffix}"), kind, labels, help });
    }
    assert!(metrics.len() >= 12, "only {} metrics were found", metrics.len());
    metrics
}

fn quoted(text: &str) -> Option<String> {
    Some(text.trim().strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// The arguments of a call, from behind its parenthesis.
fn arguments_of(text: &str) -> Vec<String> {
    let (mut depth, mut quoted) = (0_u32, false);
    let mut arguments = vec![String::new()];
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            '(' | '[' | '{' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => break,
            ')' | ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().unwrap().push(character);
    }
    arguments.retain(|argument| !argument.trim().is_empty());
    arguments
}

fn body<'a>(code: &'a str, name: &str) -> &'a str {
    let (_, rest) =
        code.split_once(&format!("struct {name} {{")).unwrap_or_else(|| panic!("there is no struct {name}"));
    rest.split_once("\n}").unwrap().0
}

/// The fields of a struct and their types.
fn fields_of(code: &str, name: &str) -> BTreeMap<String, String> {
    let lines = body(code, name).lines().filter_map(|line| line.trim().strip_prefix("pub "));
    lines
        .filter_map(|line| line.trim_end_matches(',').split_once(": "))
        .map(|(n, t)| (n.to_owned(), t.to_owned()))
        .collect()
}

fn fields_in_order(code: &str, name: &str) -> Vec<String> {
    let lines = body(code, name).lines().filter_map(|line| line.trim().strip_prefix("pub "));
    lines.filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect()
}
