//! The figures as curves over the number of namespaces, drawn as SVG.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use crate::figures::{Results, Size, median};

/// One line of a chart.
struct Series {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// Draws all charts into a folder.
pub fn draw(results: &Results, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let sizes = &results.sizes;
    let series = |name: &'static str, value: fn(&Size) -> f64| Series {
        name,
        points: sizes.iter().map(|size| (size.namespaces as f64, value(size))).collect(),
    };
    chart(
        &folder.join("seconds.svg"),
        "Seconds until all Secrets are written",
        &[
            series("operator, refresh", |s| median(&s.refresh.operator_s)),
            series("bare client, apply", |s| median(&s.refresh.bare_s["apply"])),
            series("operator, all labelled at once", |s| s.labelled.synced_s),
            series("the labels alone", |s| s.labelled.labels_s),
        ],
    )?;
    chart(
        &folder.join("memory.svg"),
        "Resident memory, MiB",
        &[
            series("peak", |s| s.peak_kib as f64 / 1024.0),
            series("peak of a start", |s| s.start.peak_kib as f64 / 1024.0),
            series("at rest", |s| s.rest.resident_kib as f64 / 1024.0),
        ],
    )?;
    chart(
        &folder.join("cpu.svg"),
        "CPU of the operator, seconds",
        &[
            series("one refresh", |s| s.refresh.cpu_s / s.refresh.operator_s.len() as f64),
            series("all labelled at once", |s| s.labelled.cpu_s),
            series("a start with fresh Secrets", |s| s.start.cpu_s),
        ],
    )
}

fn chart(path: &Path, title: &str, series: &[Series]) -> Result<()> {
    const COLOURS: [RGBColor; 4] =
        [RGBColor(31, 119, 180), RGBColor(255, 127, 14), RGBColor(44, 160, 44), RGBColor(120, 120, 120)];
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let most =
        |pick: fn(&(f64, f64)) -> f64| series.iter().flat_map(|s| &s.points).map(pick).fold(0.0_f64, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..most(|p| p.0), 0.0..most(|p| p.1))?;
    chart
        .configure_mesh()
        .x_desc("namespaces")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (series, colour) in series.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(series.points.iter().copied(), colour.stroke_width(2)).point_size(3))?
            .label(series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .label_font(("sans-serif", 13))
        .draw()?;
    root.present()?;
    Ok(())
}
