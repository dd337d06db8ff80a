//! A chart as SVG, drawn from numbers alone.
//!
//! Colours and letters are the page's: a chart only names what each part is, by class.
//!
//! Invariant: whatever the numbers are, everything drawn lies within the frame.

use std::fmt::Write;

const TOP: f64 = 12.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 30.0;

/// How a value becomes a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    Linear,
    Log,
}

/// One direction of a chart.
#[derive(Debug)]
pub(super) struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    /// Values that are marked, and how.
    marks: Vec<(f64, String)>,
}

/// Values in the order of their places.
pub(super) struct Series {
    /// The class that the page gives its colour.
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Whether what is below is filled.
    pub is_area: bool,
    /// What is said of a point under the pointer.
    pub label: Box<dyn Fn(f64, f64) -> String>,
}

/// A whole chart.
pub(super) struct Chart {
    pub name: &'static str,
    pub width: f64,
    pub height: f64,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

impl Axis {
    /// From 0 to beyond the highest value, in round steps.
    pub fn linear(highest: f64, unit: impl Fn(f64) -> String) -> Self {
        let highest = if highest > 0.0 { highest } else { 1.0 };
        let step = round_step(highest / 4.0);
        let to = (highest / step).ceil() * step;
        let count = (to / step).round() as u32;
        let marks = (0..=count).map(|nth| f64::from(nth) * step);
        Self {
            scale: Scale::Linear,
            from: 0.0,
            to,
            marks: marks.map(|value| (value, unit(value))).collect(),
        }
    }

    /// From 0 to exactly there, with round marks.
    pub fn until(end: f64, unit: impl Fn(f64) -> String) -> Self {
        let mut axis = Self::linear(end, unit);
        axis.to = if end > 0.0 { end } else { 1.0 };
        axis.marks.retain(|(value, _)| *value <= axis.to * 1.001);
        axis
    }

    /// By powers of ten around the values, with marks at 1, 2 and 5 where there is room.
    pub fn log(values: impl Iterator<Item = f64>, unit: impl Fn(f64) -> String) -> Self {
        let (mut lowest, mut highest) = (f64::MAX, f64::MIN);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            (lowest, highest) = (lowest.min(value), highest.max(value));
        }
        if lowest > highest {
            (lowest, highest) = (1.0, 10.0);
        }
        let decades = lowest.log10().floor() as i32..=highest.log10().floor() as i32;
        let is_wide = highest / lowest > 300.0;
        let mut marks: Vec<f64> = decades
            .flat_map(|decade| {
                let ten = 10f64.powi(decade);
                if is_wide {
                    vec![ten]
                } else {
                    vec![ten, 2.0 * ten, 5.0 * ten]
                }
            })
            .collect();
        let ten = 10f64.powi(highest.log10().floor() as i32 + 1);
        marks.push(ten);
        let from = marks
            .iter()
            .copied()
            .filter(|mark| *mark <= lowest)
            .fold(marks[0], f64::max);
        let to = marks
            .iter()
            .copied()
            .filter(|mark| *mark >= highest)
            .fold(ten, f64::min);
        marks.retain(|mark| (from..=to).contains(mark));
        Self {
            scale: Scale::Log,
            from,
            to: if to > from { to } else { from * 10.0 },
            marks: marks.into_iter().map(|mark| (mark, unit(mark))).collect(),
        }
    }

    /// With marks of the caller's choice.
    pub fn marked(to: f64, marks: Vec<(f64, String)>) -> Self {
        Self {
            scale: Scale::Linear,
            from: 0.0,
            to,
            marks: marks
                .into_iter()
                .filter(|(value, _)| *value <= to)
                .collect(),
        }
    }

    /// The share of the axis that is before a value, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => {
                let value = value.max(f64::MIN_POSITIVE);
                (value / self.from).ln() / (self.to / self.from).ln()
            }
        };
        if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// The next 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let ten = 10f64.powf(step.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0];
    let fits = times.into_iter().find(|times| times * ten >= step * 0.999);
    fits.unwrap_or(10.0) * ten
}

impl Chart {
    pub fn svg(&self) -> String {
        let mut svg = String::new();
        // Into a text it can't fail.
        let _ = self.draw(&mut svg);
        svg
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let (right, bottom) = (self.width - RIGHT, self.height - BOTTOM);
        (
            LEFT + self.x.share(x) * (right - LEFT),
            bottom - self.y.share(y) * (bottom - TOP),
        )
    }

    fn draw(&self, svg: &mut String) -> std::fmt::Result {
        let (right, bottom) = (self.width - RIGHT, self.height - BOTTOM);
        write!(
            svg,
            r#"<svg viewBox="0 0 {} {}" role="img" aria-label="{}">"#,
            self.width, self.height, self.name
        )?;
        for (value, text) in &self.y.marks {
            let (_, y) = self.place((0.0, *value));
            write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/><text class="y" x="{}" y="{:.1}">{text}</text>"#,
                LEFT - 8.0,
                y + 4.0
            )?;
        }
        for (value, text) in &self.x.marks {
            let (x, _) = self.place((*value, 0.0));
            write!(
                svg,
                r#"<line class="tick" x1="{x:.1}" x2="{x:.1}" y1="{bottom}" y2="{:.1}"/><text class="x" x="{x:.1}" y="{:.1}">{text}</text>"#,
                bottom + 4.0,
                bottom + 20.0
            )?;
        }
        for series in &self.series {
            self.draw_series(series, svg)?;
        }
        svg.push_str("</svg>");
        Ok(())
    }

    fn draw_series(&self, series: &Series, svg: &mut String) -> std::fmt::Result {
        let bottom = self.height - BOTTOM;
        let places: Vec<(f64, f64)> = series.points.iter().map(|at| self.place(*at)).collect();
        let mut path = String::new();
        for (nth, (x, y)) in places.iter().enumerate() {
            let step = if nth == 0 { 'M' } else { 'L' };
            write!(path, "{step}{x:.1} {y:.1}")?;
        }
        if let (true, Some(first), Some(last)) = (series.is_area, places.first(), places.last()) {
            write!(
                svg,
                r#"<path class="area {}" d="{path}L{:.1} {bottom}L{:.1} {bottom}Z"/>"#,
                series.class, last.0, first.0
            )?;
        }
        write!(svg, r#"<path class="line {}" d="{path}"/>"#, series.class)?;
        // One point alone makes no line, and each tells its numbers.
        let is_dotted = places.len() == 1;
        for ((x, y), at) in places.iter().zip(&series.points) {
            let dot = if is_dotted { "dot" } else { "spot" };
            write!(
                svg,
                r#"<circle class="{dot} {}" cx="{x:.1}" cy="{y:.1}" r="5"><title>{}</title></circle>"#,
                series.class,
                (series.label)(at.0, at.1)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn axis_ticks_are_round_and_cover_the_maximum() {
        let axis = Axis::linear(730.0, |value| format!("{value}"));
        let marks: Vec<&str> = axis.marks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(marks, ["0", "200", "400", "600", "800"]);
        let axis = Axis::log([0.3, 4.0].into_iter(), |value| format!("{value}"));
        let marks: Vec<f64> = axis.marks.iter().map(|(value, _)| *value).collect();
        assert_eq!(marks, [0.2, 0.5, 1.0, 2.0, 5.0]);
    }

    #[test]
    fn empty_series_renders_a_chart() {
        for y in [
            Axis::linear(0.0, |_| String::new()),
            Axis::log(std::iter::empty(), |_| String::new()),
        ] {
            let x = Axis::until(0.0, |_| String::new());
            let chart = Chart {
                name: "a",
                width: 500.0,
                height: 200.0,
                x,
                y,
                series: Vec::new(),
            };
            assert!(!chart.svg().contains("NaN"));
        }
    }

    proptest! {
        #[test]
        fn everything_lies_within_the_frame(values in proptest::collection::vec(0.0..1e9f64, 1..30)) {
            for y in [
                Axis::linear(values.iter().copied().fold(0.0, f64::max), |_| String::new()),
                Axis::log(values.iter().copied(), |_| String::new()),
            ] {
                let x = Axis::until(values.len() as f64, |_| String::new());
                let chart = Chart { name: "a", width: 500.0,
                height: 200.0, x, y, series: Vec::new() };
                for (nth, value) in values.iter().enumerate() {
                    let (x, y) = chart.place((nth as f64, *value));
                    prop_assert!((LEFT..=500.0 - RIGHT).contains(&x) && (TOP..=200.0 - BOTTOM).contains(&y));
                }
            }
        }
    }
}
