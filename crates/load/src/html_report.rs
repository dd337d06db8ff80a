//! Results as one self-contained HTML page with charts.
//!
//! The template escapes all text. Charts are SVG with fixed colors, which the style sheet of the page maps to its
//! light and dark themes.

use indicatif::HumanCount;
use minijinja::{AutoEscape, Environment, context};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde::Serialize;

use super::report::{Report, Sample, rounded};

const TEMPLATE: &str = include_str!("page.html");

const BLUE: RGBColor = RGBColor(0x25, 0x63, 0xC9);
const ORANGE: RGBColor = RGBColor(0xC2, 0x57, 0x0C);
const PURPLE: RGBColor = RGBColor(0x8A, 0x3F, 0xB5);
const GRID: RGBColor = RGBColor(0xE3, 0xE7, 0xEC);
const TEXT: RGBColor = RGBColor(0x5B, 0x68, 0x78);

/// Sizes of charts in pixels.
const WIDE: (u32, u32) = (1040, 260);
const NARROW: (u32, u32) = (500, 210);

/// The page could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum HtmlError {
    /// Error in the template.
    #[error("cannot render the page: {0}")]
    Template(#[from] minijinja::Error),
    /// Error in a chart.
    #[error("cannot draw a chart: {0}")]
    Chart(#[from] DrawingAreaErrorKind<std::io::Error>),
}

/// A chart as the template shows it.
#[derive(Serialize)]
struct Figure {
    title: &'static str,
    caption: &'static str,
    /// CSS class and name of each line, if there is more than one.
    legend: Vec<(&'static str, &'static str)>,
    svg: String,
}

/// A chart without its y axis.
struct Chart {
    title: &'static str,
    caption: &'static str,
    size: (u32, u32),
    x_max: f64,
    x_label: fn(&f64) -> String,
    is_filled: bool,
    lines: Vec<Line>,
}

struct Line {
    /// Name in the legend.
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

impl Report {
    /// Renders the results as an HTML page.
    ///
    /// # Errors
    /// [`HtmlError`] if the template or a chart fails.
    pub fn page(&self) -> Result<String, HtmlError> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        let grouped = |number: f64| HumanCount(number.round() as u64).to_string();
        environment.add_filter("grouped", grouped);
        environment.add_filter("number", |number: f64| rounded(number).to_string());
        environment.add_template("page", TEMPLATE)?;
        let latencies = self
            .latencies()
            .into_iter()
            .map(|(label, description, latency)| {
                let columns = latency.columns().map(|ms| format!("{ms:.2}"));
                (label, description, columns, latency.count)
            });
        Ok(environment.get_template("page")?.render(context! {
            report => self,
            started => self.started_at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            figures => self.figures()?,
            latencies => latencies.collect::<Vec<_>>(),
            sections => self.sections(),
        })?)
    }

    fn figures(&self) -> Result<Vec<Figure>, HtmlError> {
        let mut figures = vec![
            self.latency_by_percentile().draw_log()?,
            self.chart_over_time(
                "Latency over time",
                "milliseconds from the due time of an update to its arrival",
                vec![
                    self.line("p50", BLUE, |sample| Some(sample.p50_ms)),
                    self.line("p99", ORANGE, |sample| Some(sample.p99_ms)),
                    self.line("max", PURPLE, |sample| Some(sample.max_ms)),
                ],
            )
            .draw_log()?,
        ];
        let deliveries = self.line("", BLUE, |sample| Some(sample.deliveries_per_second));
        let mut charts = vec![(
            "Deliveries per second",
            "documents received by sockets",
            deliveries,
        )];
        if self.server.is_some() {
            let mebibytes = |sample: &Sample| Some(sample.memory_bytes? as f64 / 1_048_576.0);
            let cpu = self.line("", ORANGE, |sample| sample.cpu_percent);
            charts.push(("Hub CPU", "percent of one core", cpu));
            charts.push((
                "Hub memory",
                "resident MiB",
                self.line("", PURPLE, mebibytes),
            ));
        }
        for (title, caption, line) in charts {
            let mut chart = self.chart_over_time(title, caption, vec![line]);
            chart.is_filled = true;
            figures.push(chart.draw_linear()?);
        }
        Ok(figures)
    }

    fn latency_by_percentile(&self) -> Chart {
        // The x axis is the number of nines: 1 is p90, 2 is p99. More deliveries resolve more nines.
        let max_nines = (self.latency.count.max(10) as f64).log10().min(5.0);
        let points = self.percentiles.iter().map(|(quantile, ms)| {
            let nines = if *quantile < 1.0 {
                -(1.0 - quantile).log10()
            } else {
                max_nines
            };
            (nines, *ms)
        });
        let points = points.filter(|(nines, _)| *nines <= max_nines).collect();
        Chart {
            title: "Latency by percentile",
            caption: "milliseconds from the due time of an update to its arrival, by share of deliveries",
            size: WIDE,
            x_max: max_nines,
            x_label: |nines| format!("{}%", rounded(100.0 * (1.0 - 10f64.powf(-nines)))),
            is_filled: true,
            lines: vec![Line {
                name: "",
                color: BLUE,
                points,
            }],
        }
    }

    fn chart_over_time(
        &self,
        title: &'static str,
        caption: &'static str,
        lines: Vec<Line>,
    ) -> Chart {
        Chart {
            title,
            caption,
            size: NARROW,
            x_max: self.timeline.last().map_or(1.0, |sample| sample.at),
            x_label: |seconds| format!("{seconds} s"),
            is_filled: false,
            lines,
        }
    }

    fn line(&self, name: &'static str, color: RGBColor, value: fn(&Sample) -> Option<f64>) -> Line {
        let points = self
            .timeline
            .iter()
            .filter_map(|sample| Some((sample.at, value(sample)?)));
        Line {
            name,
            color,
            points: points.collect(),
        }
    }
}

impl Chart {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.lines
            .iter()
            .flat_map(|line| &line.points)
            .map(|(_, value)| *value)
    }

    fn draw_linear(self) -> Result<Figure, HtmlError> {
        let max = self.values().fold(1.0, f64::max);
        self.draw(0.0..max * 1.1)
    }

    fn draw_log(self) -> Result<Figure, HtmlError> {
        let positive = || self.values().filter(|value| *value > 0.0);
        let min = positive().reduce(f64::min).unwrap_or(1.0);
        let max = positive().fold(min, f64::max);
        self.draw((min * 0.8..max * 1.25).log_scale())
    }

    fn draw<Y>(self, y: Y) -> Result<Figure, HtmlError>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, self.size).into_drawing_area();
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin(8)
            .x_label_area_size(26)
            .y_label_area_size(56);
        let mut chart = builder.build_cartesian_2d(0.0..self.x_max, y)?;
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
        for line in &self.lines {
            if let [point] = line.points[..] {
                chart.draw_series([Circle::new(point, 3, line.color.filled())])?;
            }
            if self.is_filled {
                chart.draw_series(AreaSeries::new(
                    line.points.clone(),
                    0.0,
                    line.color.mix(0.13),
                ))?;
            }
            chart.draw_series(LineSeries::new(
                line.points.clone(),
                line.color.stroke_width(2),
            ))?;
        }
        area.present()?;
        drop(chart);
        drop(area);
        let attributes = format!("<svg role=\"img\" aria-label=\"{}\" ", self.title);
        let classes = ["a", "b", "c"].into_iter();
        let names = self.lines.iter().map(|line| line.name);
        Ok(Figure {
            title: self.title,
            caption: self.caption,
            legend: classes
                .zip(names)
                .filter(|(_, name)| !name.is_empty())
                .collect(),
            svg: svg.replacen("<svg ", &attributes, 1),
        })
    }
}
