//! Charts of the HTML page: SVG with fixed colors, which the style sheet of the page maps to its light and dark themes.

use anyhow::Result;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde::Serialize;

use super::measure::Sample;
use super::report::Report;
use super::stats::rounded;

const BLUE: RGBColor = RGBColor(0x25, 0x63, 0xC9);
const ORANGE: RGBColor = RGBColor(0xC2, 0x57, 0x0C);
const PURPLE: RGBColor = RGBColor(0x8A, 0x3F, 0xB5);
const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEC);
const TEXT: RGBColor = RGBColor(0x5B, 0x68, 0x78);

/// Sizes of charts in pixels.
const WIDE: (u32, u32) = (1040, 260);
const NARROW: (u32, u32) = (500, 210);

/// A chart. The template shows the serialized fields.
#[derive(Serialize)]
pub(super) struct Chart {
    title: &'static str,
    caption: &'static str,
    lines: Vec<Line>,
    svg: String,
    #[serde(skip)]
    size: (u32, u32),
    #[serde(skip)]
    x_max: f64,
    #[serde(skip)]
    x_label: fn(&f64) -> String,
    #[serde(skip)]
    is_logarithmic: bool,
}

#[derive(Serialize)]
struct Line {
    /// Name in the legend, which charts with a single line do not have.
    name: &'static str,
    #[serde(skip)]
    color: RGBColor,
    #[serde(skip)]
    points: Vec<(f64, f64)>,
}

impl Report {
    /// Draws all charts. Charts without values are omitted.
    ///
    /// # Errors
    /// A chart cannot be drawn.
    pub(super) fn charts(&self) -> Result<Vec<Chart>> {
        let latency = "milliseconds from the due time of an update to its arrival";
        let latencies = vec![
            self.line("p50", BLUE, |sample| Some(sample.p50_ms)),
            self.line("p99", ORANGE, |sample| Some(sample.p99_ms)),
            self.line("max", PURPLE, |sample| Some(sample.max_ms)),
        ];
        let deliveries = |sample: &Sample| Some(sample.deliveries_per_second);
        let deliveries = vec![self.line("", BLUE, deliveries)];
        let cpu = vec![self.line("", ORANGE, |sample| sample.cpu_percent)];
        let memory = |sample: &Sample| Some(sample.memory_bytes? as f64 / 1_048_576.0);
        let memory = vec![self.line("", PURPLE, memory)];
        let over_time = [
            ("Latency over time", latency, true, latencies),
            (
                "Deliveries per second",
                "documents received by sockets",
                false,
                deliveries,
            ),
            ("Hub CPU", "percent of one core", false, cpu),
            ("Hub memory", "resident MiB", false, memory),
        ];
        let over_time = over_time.map(|(title, caption, is_logarithmic, lines)| Chart {
            title,
            caption,
            lines,
            svg: String::new(),
            size: NARROW,
            x_max: self.timeline.last().map_or(1.0, |sample| sample.at),
            x_label: |seconds| format!("{seconds} s"),
            is_logarithmic,
        });
        let charts = [self.latency_by_percentile()].into_iter().chain(over_time);
        let charts = charts.filter(|chart| chart.values().next().is_some());
        charts.map(Chart::draw).collect()
    }

    fn line(&self, name: &'static str, color: RGBColor, value: fn(&Sample) -> Option<f64>) -> Line {
        let samples = self.timeline.iter();
        let points = samples.filter_map(|sample| Some((sample.at, value(sample)?)));
        Line {
            name,
            color,
            points: points.collect(),
        }
    }

    fn latency_by_percentile(&self) -> Chart {
        // The x axis is the number of nines: 1 is p90, 2 is p99. More deliveries resolve more nines.
        let max_nines = (self.latency.count().max(10) as f64).log10().min(5.0);
        let points = self.percentiles.iter().map(|(quantile, ms)| {
            let nines = -(1.0 - quantile).log10();
            (if nines.is_finite() { nines } else { max_nines }, *ms)
        });
        let points = points.filter(|(nines, _)| *nines <= max_nines).collect();
        Chart {
            title: "Latency by percentile",
            caption: "milliseconds from the due time of an update to its arrival, by share of deliveries",
            lines: vec![Line {
                name: "",
                color: BLUE,
                points,
            }],
            svg: String::new(),
            size: WIDE,
            x_max: max_nines,
            x_label: |nines| format!("{}%", rounded(100.0 * (1.0 - 10f64.powf(-nines)))),
            is_logarithmic: true,
        }
    }
}

impl Chart {
    fn values(&self) -> impl Iterator<Item = f64> {
        let points = self.lines.iter().flat_map(|line| &line.points);
        points.map(|(_, value)| *value)
    }

    fn draw(mut self) -> Result<Self> {
        let svg = if self.is_logarithmic {
            let positive = || self.values().filter(|value| *value > 0.0);
            let min = positive().reduce(f64::min).unwrap_or(1.0);
            let max = positive().fold(min, f64::max);
            self.svg((min * 0.8..max * 1.25).log_scale())?
        } else {
            self.svg(0.0..self.values().fold(1.0, f64::max) * 1.1)?
        };
        let attributes = format!("<svg role=\"img\" aria-label=\"{}\" ", self.title);
        self.svg = svg.replacen("<svg ", &attributes, 1);
        Ok(self)
    }

    fn svg<Y>(&self, y: Y) -> Result<String>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, self.size).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(26)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..self.x_max, y)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&self.x_label)
            .y_label_formatter(&|value| rounded(*value).to_string())
            .label_style(("sans-serif", 15).into_font().color(&TEXT))
            .draw()?;
        for Line { color, points, .. } in &self.lines {
            if let [point] = points[..] {
                chart.draw_series([Circle::new(point, 3, color.filled())])?;
            }
            let points = points.iter().copied();
            if self.lines.len() == 1 {
                chart.draw_series(AreaSeries::new(points.clone(), 0.0, color.mix(0.13)))?;
            }
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        }
        area.present()?;
        drop(chart);
        drop(area);
        Ok(svg)
    }
}
