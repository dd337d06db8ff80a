//! Tables of text for a terminal.

use serde_json::Value;

/// Returns rows with columns of equal width. The last column is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
        Vec::from_iter(cells).join("  ").trim_end().to_owned()
    };
    Vec::from_iter(rows.iter().map(line)).join("\n")
}

/// Returns a value of a response as text: `-` if it is missing, and without control characters,
/// which could change the terminal.
pub(crate) fn cell(value: &Value) -> String {
    if value.is_null() {
        return "-".to_owned();
    }
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_removed() {
        let row = |a: Value, b: Value| vec![cell(&a), cell(&b)];
        let rows = [
            row(json!("NAME"), json!("STATE")),
            row(json!("ü\u{1b}[2J"), Value::Null),
            row(json!(12345), json!(true)),
        ];
        assert_eq!(table(&rows), "NAME   STATE\nü [2J  -\n12345  true");
    }
}
