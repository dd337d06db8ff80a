//! Results as a table for a terminal and as one self-contained HTML page. Both show the same rows. Values that were not
//! measured are omitted.

use anyhow::Result;
use indicatif::{BinaryBytes, HumanCount};
use minijinja::{Environment, context};

use super::chart::Chart;
use super::report::Report;
use super::stats::rounded;

impl Report {
    /// Returns the results as a table, with the result of the checks last.
    ///
    /// # Errors
    /// The table cannot be rendered.
    pub fn table(&self) -> Result<String> {
        self.render("table.txt", &[])
    }

    /// Returns the results as an HTML page. The template escapes all text.
    ///
    /// # Errors
    /// The page cannot be rendered, or a chart cannot be drawn.
    pub fn page(&self) -> Result<String> {
        self.render("page.html", &self.charts()?)
    }

    fn render(&self, template: &str, charts: &[Chart]) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_keep_trailing_newline(true);
        environment.add_filter("grouped", |number: f64| {
            HumanCount(number.round() as u64).to_string()
        });
        environment.add_filter("number", |number: f64| rounded(number).to_string());
        environment.add_filter("fixed", |number: f64, digits: usize| {
            format!("{number:.digits$}")
        });
        environment.add_filter("bytes", |number: f64| {
            BinaryBytes(number as u64).to_string()
        });
        environment.add_template("page.html", include_str!("page.html"))?;
        environment.add_template("table.txt", include_str!("table.txt"))?;
        environment.add_template("rows.txt", include_str!("rows.txt"))?;
        let rows = environment.get_template("rows.txt")?;
        let rows = rows.render(context! { report => self })?;
        let mut sections: Vec<(&str, Vec<Vec<&str>>)> = Vec::new();
        for line in rows.lines() {
            match sections.last_mut() {
                Some((_, rows)) if line.contains('\t') => rows.push(line.split('\t').collect()),
                _ => sections.push((line, Vec::new())),
            }
        }
        let started = self.started_at.strftime("%Y-%m-%d %H:%M UTC").to_string();
        let context = context! { report => self, started, charts, sections };
        Ok(environment.get_template(template)?.render(context)?)
    }
}

#[cfg(test)]
mod tests {
    use crate::stats::Violations;

    #[test]
    fn every_kind_of_violation_is_described() {
        let mut kinds = serde_json::to_value(Violations::default()).unwrap();
        let kinds = kinds.as_object_mut().unwrap();
        // A number of sockets, not a kind of violation.
        kinds.remove("sockets_behind").unwrap();
        for kind in kinds.keys() {
            let row = format!("[\"{kind}\", ");
            assert!(include_str!("rows.txt").contains(&row), "{kind}");
        }
    }
}
