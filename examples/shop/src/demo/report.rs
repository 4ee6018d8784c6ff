//! What the demo says while it runs, and what it claims at its end.

use std::{fmt::Display, io::IsTerminal as _};

use tokio::time::Instant;

/// Prints what is going on, with the time since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    started: Instant,
    color: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { started: Instant::now(), color }
    }

    /// A new act.
    pub(crate) fn act(self, title: impl Display) {
        println!("\n{}", self.bold(title));
    }

    /// Something that happened.
    pub(crate) fn step(self, text: impl Display) {
        println!("  {:>5.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    /// Lines that belong to what was said before.
    pub(crate) fn detail(self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("           {line}");
        }
    }

    fn bold(self, text: impl Display) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_string() }
    }

    fn mark(self, holds: bool) -> String {
        let (mark, code) = if holds { ("ok", 32) } else { ("NOT SO", 31) };
        if self.color { format!("\x1b[{code}m{mark:>8}\x1b[0m") } else { format!("{mark:>8}") }
    }
}

/// A sentence about the run, and whether what the components reported bears it out.
#[derive(Clone, Debug)]
struct Claim {
    text: String,
    /// What speaks against it.
    faults: Vec<String>,
}

/// All claims of the demo.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    claims: Vec<Claim>,
}

impl Claims {
    /// Claims something, with all that speaks against it.
    pub(crate) fn claim(&mut self, text: impl Into<String>, faults: Vec<String>) {
        self.claims.push(Claim { text: text.into(), faults });
    }

    /// Claims something that holds if `holds`; `seen` is what was seen instead.
    pub(crate) fn check(&mut self, text: impl Into<String>, holds: bool, seen: impl Display) {
        self.claim(text, if holds { Vec::new() } else { vec![seen.to_string()] });
    }

    /// Prints them all.
    pub(crate) fn print(&self, progress: Progress) {
        for claim in &self.claims {
            println!("{}  {}", progress.mark(claim.faults.is_empty()), claim.text);
            for fault in &claim.faults {
                println!("            {fault}");
            }
        }
    }

    /// Those that do not hold.
    pub(crate) fn broken(&self) -> Vec<&str> {
        self.claims.iter().filter(|claim| !claim.faults.is_empty()).map(|claim| claim.text.as_str()).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.claims.len()
    }
}

/// Rows in columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(|row| line(row) + "\n").collect()
}

/// Cents as money.
pub(crate) fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_with_a_fault_is_broken() {
        let mut claims = Claims::default();
        claims.check("one and one is two", 1 + 1 == 2, "");
        claims.check("one and one is three", 1 + 1 == 3, 2);
        claims.claim("nothing speaks against it", Vec::new());
        assert_eq!((claims.broken(), claims.count()), (vec!["one and one is three"], 3));
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["ccc".to_owned(), "ä".to_owned(), "d".to_owned()]];
        assert_eq!(table(&rows), "a    b\nccc  ä  d\n");
    }
}
