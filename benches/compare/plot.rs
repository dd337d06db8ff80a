//! A curve as SVG: both axes logarithmic, so that what is linear is a straight line of slope one.
//!
//! Invariant: what is drawn is what the table beside it says.

use std::fmt::Write;

use crate::table::markdown;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 70.0;

/// A plot of it.
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// What grows.
    pub across: &'a str,
    /// What is measured.
    pub up: &'a str,
    /// When and where.
    pub about: &'a str,
    /// How many, and what it cost.
    pub points: Vec<(usize, f64)>,
}

/// From the power of ten below the least to the one above the most.
struct Axis {
    from: f64,
    to: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, begin: f64, end: f64) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).log10();
        let most = values.fold(0.0, f64::max).log10();
        let from = (least + 1e-9).floor();
        Self {
            from,
            to: (most - 1e-9).ceil().max(from + 1.0),
            begin,
            end,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - self.from) / (self.to - self.from);
        self.begin + part * (self.end - self.begin)
    }

    /// The powers of ten on it.
    fn marks(&self) -> Vec<f64> {
        let mut marks = Vec::new();
        let mut power = self.from;
        while power <= self.to + 0.5 {
            marks.push(10f64.powf(power));
            power += 1.0;
        }
        marks
    }
}

impl Plot<'_> {
    #[expect(clippy::cast_precision_loss, reason = "nowhere near 2⁵³")]
    fn curve(&self) -> impl Iterator<Item = (f64, f64)> + Clone + '_ {
        self.points.iter().map(|&(many, cost)| (many as f64, cost))
    }

    /// The picture. Writing to a `String` can't fail.
    pub fn svg(&self) -> String {
        let x = Axis::over(self.curve().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Axis::over(self.curve().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}</text>\n",
            self.title
        );
        for mark in x.marks() {
            let at = x.at(mark);
            let (top, bottom) = (TOP, HEIGHT - BOTTOM);
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
                bottom + 18.0
            );
        }
        for mark in y.marks() {
            let at = y.at(mark);
            let (left, right) = (LEFT, WIDTH - RIGHT);
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
                left - 8.0,
                at + 4.0
            );
        }
        let line: Vec<String> = self
            .curve()
            .map(|(many, cost)| format!("{:.1},{:.1}", x.at(many), y.at(cost)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#0b62d6\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (many, cost) in self.curve() {
            let (across, up) = (x.at(many), y.at(cost));
            let _ = writeln!(
                svg,
                "<circle cx=\"{across:.1}\" cy=\"{up:.1}\" r=\"3.5\" fill=\"#0b62d6\"/>\
                 <text x=\"{across:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{cost:.0}</text>",
                up - 9.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"42\" fill=\"#555\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"10\" fill=\"#555\">{}</text>\n</svg>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - BOTTOM + 36.0,
            self.across,
            self.up,
            HEIGHT - 12.0,
            self.about
        );
        svg
    }

    /// The same as a table.
    pub fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .points
            .iter()
            .map(|(many, cost)| vec![many.to_string(), format!("{cost:.0}")])
            .collect();
        markdown(&[self.across, self.up], &rows)
    }
}
