//! The figures as tables, each beside its goal.

use std::fmt::Write;

use crate::attach::Attach;
use crate::bare::Verb;
use crate::figures::{Many, Results, Size, median, quantile};
use crate::latency::Latency;

const MIB: f64 = 1024.0 * 1024.0;

/// One line of the table.
struct Line {
    what: String,
    figure: String,
    goal: &'static str,
    /// None for a figure without a goal at this size.
    met: Option<bool>,
}

/// The whole report, as Markdown.
pub fn report(results: &Results) -> String {
    let mut text = format!("{}, {}\n\n", results.date, results.machine);
    text.push_str("| what | figure | goal | |\n|---|---|---|---|\n");
    let mut lines: Vec<Line> = results.sizes.iter().flat_map(size).collect();
    lines.extend(slope(&results.sizes));
    lines.extend(labelled_growth(&results.sizes));
    lines.extend(results.many.iter().flat_map(many));
    lines.extend(growth(&results.many));
    lines.extend(sizes(results));
    for line in lines {
        let met = line.met.map_or("", |met| if met { "met" } else { "**not met**" });
        let _ = writeln!(text, "| {} | {} | {} | {met} |", line.what, line.figure, line.goal);
    }
    text.push_str(&verbs(&results.sizes));
    text.push_str(&attach(&results.attach));
    text
}

/// What the policy that attaches Secrets costs each new pod.
fn attach(rows: &[Attach]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = "\n| EcrCredentials | of which attach to pods | create of a pod with a matching image, median ms | with another image |\n|---|---|---|---|\n".to_owned();
    for row in rows {
        let (matching, other) = (median(&row.matching_ms), median(&row.other_ms));
        let credentials = if row.credentials == 0 { "no policy".to_owned() } else { row.credentials.to_string() };
        let _ = writeln!(text, "| {credentials} | {} | {matching:.1} | {other:.1} |", row.asking);
    }
    text
}

fn size(size: &Size) -> Vec<Line> {
    let n = size.namespaces;
    let line = |what: &str, figure: String, goal: &'static str, met: bool| Line {
        what: format!("{n} namespaces: {what}"),
        figure,
        goal,
        met: Some(met),
    };
    let runs = size.refresh.operator_s.len() as f64;
    let (ours, bare) = (median(&size.refresh.operator_s), median(&size.refresh.bare_s["apply"]));
    let requests = size.refresh.requests.about("secrets") / runs / n as f64;
    let others: f64 = ["ecrcredentials/status", "events"].iter().map(|r| size.refresh.requests.about(r)).sum();
    let calls = size.refresh.aws_calls as f64 / runs;
    let cpu = size.refresh.cpu_s * 1000.0 / runs / n as f64;
    let bare_cpu = size.refresh.bare_cpu_s * 1000.0 / runs / n as f64;
    let labelled = &size.labelled;
    let mut lines = vec![
        line(
            "refresh, Secrets a second (bare client)",
            format!("{:.0} ({:.0}), ratio {:.2}", n as f64 / ours, n as f64 / bare, bare / ours),
            "0.9 of the bare client",
            bare / ours >= 0.9,
        ),
        line(
            "requests for each Secret and refresh, and others for each refresh",
            format!("{requests:.3}, {:.1}", others / runs),
            "1.0 and a constant",
            (0.9995..1.0005).contains(&requests) && others / runs <= 5.0,
        ),
        line("AWS calls for each refresh", format!("{calls}"), "1", calls == 1.0),
        line(
            "CPU of the operator for each Secret refreshed (bare client), ms",
            format!("{cpu:.2} ({bare_cpu:.2})"),
            "0.3",
            cpu <= 0.3,
        ),
        line(
            "all labelled at once: labels, Secrets, seconds; CPU for each Secret, ms",
            format!("{:.1}, {:.1}; {:.2}", labelled.labels_s, labelled.synced_s, labelled.cpu_s * 1000.0 / n as f64),
            "0.3 ms as with the refresh",
            labelled.cpu_s * 1000.0 / n as f64 <= 0.3,
        ),
        line(
            "all labelled at once: writes of the status; of each Secret",
            format!("{}; {:.3}", labelled.status_writes, labelled.secret_writes / n as f64),
            "coalesced; 1.0",
            labelled.status_writes <= 5.0 + labelled.synced_s * 2.0,
        ),
    ];
    lines.extend(watch(size));
    lines.extend(latency(n, "new namespace to its Secret", &size.idle));
    lines.extend(latency(n, "the same without a pause between them", &size.rush));
    lines.extend(busy(size));
    lines.push(line(
        "start with fresh Secrets: Ready, and the lists' bare download, seconds",
        format!("{:.2}, {:.2}", size.start.ready_s, size.start.download_s),
        "2 s more than the download",
        size.start.ready_s <= size.start.download_s + 2.0,
    ));
    lines.push(line("start with fresh Secrets: writes", size.start.writes.to_string(), "0", size.start.writes == 0.0));
    let share = size.rest.cpu_s / size.rest.seconds * 100.0;
    lines.push(line(
        "at rest: writes but the Lease, and CPU, % of a core",
        format!("{}, {share:.3}", size.rest.requests.changes()),
        "0, 0.1",
        size.rest.requests.changes() == 0.0 && share < 0.1,
    ));
    let peak = size.peak_kib.max(size.start.peak_kib) as f64 / 1024.0;
    let goal = if n <= 500 { ("25", 25.0) } else { ("48", 48.0) };
    lines.push(line(
        "peak of the resident memory: run, start, MiB",
        format!("{:.1}, {:.1}", size.peak_kib as f64 / 1024.0, size.start.peak_kib as f64 / 1024.0),
        goal.0,
        peak <= goal.1,
    ));
    lines
}

/// What a watch of the Secrets costs, which the bare client does without.
fn watch(size: &Size) -> Vec<Line> {
    let (n, refresh) = (size.namespaces, &size.refresh);
    let Some(watched) = refresh.bare_s.get(Verb::Watched.name()) else { return Vec::new() };
    let (ours, watched) = (median(&refresh.operator_s), median(watched));
    let writes = (refresh.operator_s.len() * n) as f64;
    let cpu = ["operator", Verb::Watched.name(), Verb::Apply.name()]
        .map(|who| refresh.plane_cpu_s.get(who).map_or("?".to_owned(), |s| format!("{:.2}", s * 1000.0 / writes)));
    let line =
        |what: &str, figure: String| Line { what: format!("{n} namespaces: {what}"), figure, goal: "", met: None };
    vec![
        line(
            "refresh, Secrets a second (bare client beside a watch like the operator's)",
            format!("{:.0} ({:.0}), ratio {:.2}", n as f64 / ours, n as f64 / watched, watched / ours),
        ),
        line(
            "CPU of the control plane for each write, ms: operator; bare client beside a watch, without",
            format!("{}; {}, {}", cpu[0], cpu[1], cpu[2]),
        ),
    ]
}

fn latency(n: usize, name: &str, latency: &Latency) -> Vec<Line> {
    if latency.new_ms.is_empty() {
        return Vec::new();
    }
    let line = |what: &str, share: f64| {
        let (new, bare) = (quantile(&latency.new_ms, share), quantile(&latency.bare_ms, share));
        Line {
            what: format!("{n} namespaces: {name} (one bare write), {what}, ms"),
            figure: format!("{new:.1} ({bare:.1}), ratio {:.1}", new / bare),
            goal: "twice a bare write",
            met: Some(new <= 2.0 * bare),
        }
    };
    vec![line("median", 0.5), line("p99", 0.99)]
}

/// What goes ahead of the queue takes a few writes' time, and not what is left of the refresh.
fn busy(size: &Size) -> Option<Line> {
    let latency = &size.busy;
    let (new, worst) = (median(&latency.new_ms), quantile(&latency.new_ms, 1.0));
    let bare = median(&latency.bare_ms);
    (!latency.new_ms.is_empty()).then(|| Line {
        what: format!(
            "{} namespaces: new namespace during a refresh: median, worst of {} (a bare write then), ms",
            size.namespaces,
            latency.new_ms.len()
        ),
        figure: format!("{new:.0}, {worst:.0} ({bare:.0}), ratio {:.1}", new / bare),
        goal: "worst: a tenth of the refresh",
        // Of a refresh that takes a second a tenth is no more than one write beside 31 others.
        met: (size.namespaces >= 5000).then_some(worst < median(&size.refresh.operator_s) * 100.0),
    })
}

fn slope(sizes: &[Size]) -> Option<Line> {
    let (first, last) = (sizes.first()?, sizes.last()?);
    let peak = |size: &Size| size.peak_kib.max(size.start.peak_kib) as f64;
    let (more, kib) = (last.namespaces.checked_sub(first.namespaces)?, peak(last) - peak(first));
    (more > 0).then(|| Line {
        what: format!("memory for each namespace, {} to {}, KiB", first.namespaces, last.namespaces),
        figure: format!("{:.2}", kib / more as f64),
        goal: "2",
        met: Some(kib / (more as f64) < 2.0),
    })
}

/// Linear: the processor time of each Secret does not grow with the number of namespaces.
fn labelled_growth(sizes: &[Size]) -> Option<Line> {
    let (first, last) = (sizes.first()?, sizes.last()?);
    let cpu = |size: &Size| size.labelled.cpu_s / size.namespaces as f64;
    (last.namespaces > first.namespaces).then(|| Line {
        what: format!(
            "all labelled at once: CPU for each Secret, {} namespaces beside {}",
            last.namespaces, first.namespaces
        ),
        figure: format!("{:.2} times", cpu(last) / cpu(first)),
        goal: "linear: 1.5 times",
        met: Some(cpu(last) <= cpu(first) * 1.5),
    })
}

fn many(many: &Many) -> Vec<Line> {
    let secrets = many.secret_writes;
    let cpu = many.cpu_s * 1000.0 / secrets;
    let each = many.status_writes / many.credentials as f64;
    let name = format!("{} EcrCredentials x 10 namespaces", many.credentials);
    let line = |what: &str, figure: String, goal: &'static str, met: Option<bool>| Line {
        what: format!("{name}: {what}"),
        figure,
        goal,
        met,
    };
    let (new, bare) = (median(&many.idle.new_ms), median(&many.idle.bare_ms));
    vec![
        line(
            "all Ready, seconds; peak memory, MiB",
            format!("{:.1}; {:.1}", many.ready_s, many.peak_kib as f64 / 1024.0),
            "",
            None,
        ),
        line(
            "CPU for each Secret, ms; AWS calls",
            format!("{cpu:.2}; {}", many.aws_calls),
            "linear; 1",
            Some(many.aws_calls == 1),
        ),
        line("writes of the status for each", format!("{each:.2}"), "coalesced", Some(each <= 3.0)),
        line(
            "new namespace to its Secret (one bare write), median, ms",
            format!("{new:.1} ({bare:.1}), ratio {:.1}", new / bare),
            "twice a bare write",
            Some(new <= 2.0 * bare),
        ),
        line(
            "start with fresh Secrets: Ready, download, CPU, seconds; writes; reads of a Secret",
            format!(
                "{:.2}, {:.2}, {:.2}; {}; {}",
                many.start.ready_s, many.start.download_s, many.start.cpu_s, many.start.writes, many.start.reads
            ),
            "2 s more; 0",
            Some(many.start.writes == 0.0 && many.start.ready_s <= many.start.download_s + 2.0),
        ),
    ]
}

/// Linear: the processor time of each Secret does not grow with their number.
fn growth(many: &[Many]) -> Option<Line> {
    let (first, last) = (many.first()?, many.last()?);
    let cpu = |many: &Many| many.cpu_s / many.secret_writes;
    (last.credentials > first.credentials).then(|| Line {
        what: format!("CPU for each Secret, {} EcrCredentials beside {}", last.credentials, first.credentials),
        figure: format!("{:.2} times", cpu(last) / cpu(first)),
        goal: "linear: 1.5 times",
        met: Some(cpu(last) <= cpu(first) * 1.5),
    })
}

fn sizes(results: &Results) -> Vec<Line> {
    let line = |what: &str, bytes: u64, goal: &'static str, most: f64| Line {
        what: what.to_owned(),
        figure: format!("{:.1} MB ({:.1} MiB)", bytes as f64 / 1e6, bytes as f64 / MIB),
        goal,
        met: Some(bytes as f64 <= most * 1e6),
    };
    let image = results.image.map(|bytes| line("image archive", bytes, "30 MB", 30.0));
    std::iter::once(line("binary", results.binary, "16 MB", 16.0)).chain(image).collect()
}

/// The ways to write, side by side.
fn verbs(sizes: &[Size]) -> String {
    let mut text = String::from("\nSecrets a second, medians:\n\n| namespaces | operator |");
    text.extend(Verb::ALL.map(|verb| format!(" bare {} |", verb.name())));
    text.push_str("\n|---|---|");
    text.extend(Verb::ALL.map(|_| "---|"));
    text.push('\n');
    for size in sizes {
        let rate = |list: &[f64]| format!("{:.0}", size.namespaces as f64 / median(list));
        let bare = Verb::ALL.map(|verb| size.refresh.bare_s.get(verb.name()).map_or("".to_owned(), |s| rate(s)));
        let _ = writeln!(text, "| {} | {} | {} |", size.namespaces, rate(&size.refresh.operator_s), bare.join(" | "));
    }
    text
}
