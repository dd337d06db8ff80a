//! Chart of cost against size, as SVG. Both axes are logarithmic: linear growth is a straight line of slope one.

use std::ops::Range;

use plotters::prelude::*;

use crate::table::markdown;

const SIZE: (u32, u32) = (640, 400);
const LINE: RGBColor = RGBColor(0x0B, 0x62, 0xD6);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);

/// A chart and its labels.
pub struct Plot<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    /// Date and machine.
    pub footer: &'a str,
    /// Size and cost.
    pub points: Vec<(usize, f64)>,
}

impl Plot<'_> {
    /// Draws the chart as SVG.
    pub fn svg(&self) -> anyhow::Result<String> {
        #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
        let points: Vec<(f64, f64)> = self
            .points
            .iter()
            .map(|&(size, cost)| (size as f64, cost))
            .collect();
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let caption = format!("{} ({})", self.title, self.y_label);
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin(16)
            .x_label_area_size(52)
            .y_label_area_size(64);
        let mut chart = builder
            .caption(caption, ("sans-serif", 20))
            .build_cartesian_2d(
                decades(points.iter().map(|point| point.0)).log_scale(),
                decades(points.iter().map(|point| point.1)).log_scale(),
            )?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(("sans-serif", 16))
            .x_desc(format!("{} – {}", self.x_label, self.footer))
            .x_label_formatter(&|size| size.to_string())
            .y_label_formatter(&|cost| cost.to_string())
            .draw()?;
        chart.draw_series(LineSeries::new(
            points.iter().copied(),
            LINE.stroke_width(2),
        ))?;
        chart.draw_series(points.iter().map(|&point| {
            let cost = Text::new(format!("{:.0}", point.1), (-8, -18), ("sans-serif", 16));
            EmptyElement::at(point) + Circle::new((0, 0), 3, LINE.filled()) + cost
        }))?;
        area.present()?;
        drop(chart);
        drop(area);
        Ok(svg)
    }

    /// Returns the points as a Markdown table.
    pub fn table(&self) -> String {
        let row = |(size, cost): &(usize, f64)| vec![size.to_string(), format!("{cost:.0}")];
        let rows: Vec<Vec<String>> = self.points.iter().map(row).collect();
        markdown(&[self.x_label, self.y_label], &rows)
    }
}

/// Returns the powers of ten that enclose all values.
fn decades(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let min = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
    let max = values.fold(0.0, f64::max).log10().ceil().max(min + 1.0);
    10f64.powf(min)..10f64.powf(max)
}
