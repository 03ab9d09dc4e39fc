//! Numbers and tables as Markdown has them.

use std::fmt;

/// Without decimals, its thousands apart.
pub fn whole(number: f64) -> String {
    grouped(number.round() as u64)
}

pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut written = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            written.push(',');
        }
        written.push(digit);
    }
    written
}

/// With so many decimals.
pub fn decimals(count: usize) -> impl Fn(f64) -> String {
    move |number| format!("{number:.count$}")
}

/// With three digits that tell something.
pub fn ratio(ratio: f64) -> String {
    let count = match ratio {
        ..1.0 => 3,
        ..10.0 => 2,
        _ => 1,
    };
    decimals(count)(ratio)
}

/// A table in Markdown.
pub struct Table {
    columns: usize,
    text: String,
}

impl Table {
    pub fn new(head: &[&str]) -> Table {
        let mut table = Table { columns: head.len(), text: String::new() };
        table.row(head.iter().map(|cell| (*cell).to_owned()));
        table.text += &("|---".repeat(head.len()) + "|\n");
        table
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns, "a row of another table");
        self.text += &format!("| {} |\n", cells.join(" | "));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no tests of its own: they run in tests/it")]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let written = [0, 7, 999, 1_000, 12_345, 1_234_567].map(grouped);
        assert_eq!(written, ["0", "7", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!(whole(999.6), "1,000");
    }

    #[test]
    fn a_ratio_keeps_the_digits_that_tell() {
        assert_eq!([0.0344, 0.18, 1.0, 8.25, 31.26].map(ratio), ["0.034", "0.180", "1.00", "8.25", "31.3"]);
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(&["", "requests/s"]);
        table.row(["bare actix-web".to_owned(), whole(1_000.0)]);
        assert_eq!(table.to_string(), "|  | requests/s |\n|---|---|\n| bare actix-web | 1,000 |\n");
    }
}
