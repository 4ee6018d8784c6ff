//! What goes to the terminal: text, colours, JSON and YAML.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;

use crate::error::Error;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For people and programs.
    Yaml,
}

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// No colours.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { on: false }
    }

    /// Colours always.
    #[cfg(test)]
    pub(crate) fn colored() -> Self {
        Self { on: true }
    }

    /// For standard output.
    pub(crate) fn for_stdout(color: Color) -> Self {
        Self::new(color, io::stdout().is_terminal())
    }

    /// For standard error.
    pub(crate) fn for_stderr(color: Color) -> Self {
        Self::new(color, io::stderr().is_terminal())
    }

    fn new(color: Color, terminal: bool) -> Self {
        let on = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        Self { on }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Errors and removed lines.
    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// Added lines.
    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// Places in a diff.
    pub(crate) fn place(self, text: &str) -> String {
        self.wrap("36", text)
    }

    /// Headings.
    pub(crate) fn strong(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// Writes to standard output. A reader that went away (`| head`) is no error worth a message.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe { Error::OutputClosed } else { Error::Output(error) }
    })
}

/// Writes a value to standard output, as JSON or YAML.
pub(crate) fn print_value(value: &impl Serialize, format: Format) -> Result<(), Error> {
    print(&render(value, format)?)
}

/// A value as JSON or, for any other format, YAML.
pub(crate) fn render(value: &impl Serialize, format: Format) -> Result<String, Error> {
    let broken = |error: String| Error::Output(io::Error::other(error));
    match format {
        Format::Json => {
            serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| broken(error.to_string()))
        }
        Format::Yaml | Format::Table => serde_yaml_ng::to_string(value).map_err(|error| broken(error.to_string())),
    }
}

/// Writes to standard error; there is nobody to tell if that fails.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
