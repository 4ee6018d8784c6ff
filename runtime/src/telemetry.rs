//! Logging of the process: to standard error, as text or JSON lines, with a level that can be changed
//! while it runs. Nobody waits for whoever reads it: what is not taken in time is dropped and counted.

mod lines;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal as _},
    panic,
    sync::Arc,
    thread,
    time::Duration,
};

use prometheus::Registry as Metrics;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::ParseError, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use self::lines::{DROPPED, LINES, Lines};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter such as `info` or `info,heddle_proxy=debug`.
    #[error("log filter {filter:?} cannot be read")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something has set a global logger before.
    #[error("logging is already set up")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
    /// The process is ending.
    #[error("logging is gone")]
    Gone,
    /// The system gives no thread or descriptor for it.
    #[error("no thread or descriptor to write the log with")]
    Writer(#[from] io::Error),
}

/// How long the end of the process waits for what was logged to be written.
const FLUSH: Duration = Duration::from_secs(2);
/// How long a panic waits for what it says to be written: it may be the last that the process says.
const FLUSH_PANIC: Duration = Duration::from_millis(100);

/// Changes what is logged, at run time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

/// Sets up logging for the whole process, panics included. `filter` is as in `info,heddle_proxy=debug`.
///
/// Whoever ends the process calls [`flush`] at last.
pub fn init_logging(filter: &str, format: Format) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    // Files and collectors of logs want no colours.
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let queue = Lines::to_stderr()?;
    let lines = fmt::layer().with_writer(Arc::clone(&queue)).with_ansi(colours);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    // Panics write to standard error, too, and would wait for it.
    panic::set_hook(Box::new(|panic| {
        say_panic(panic);
        if let Some(lines) = LINES.get() {
            lines.flush(FLUSH_PANIC);
        }
    }));
    // It was not set before, or the logger would have been.
    let _ = LINES.set(queue);
    Ok(LogHandle(handle))
}

fn say_panic(panic: &panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    say(&format!("thread '{}' {panic}{backtrace}", thread::current().name().unwrap_or("without a name")));
}

/// Writes a line to standard error, after what was logged before and without waiting, whatever the log's filter.
pub fn say(line: &str) {
    match LINES.get() {
        Some(lines) => lines.push(format!("{line}\n").as_bytes()),
        None => eprintln!("{line}"),
    }
}

/// Waits until all that was logged is written, or 2 s: a log that nobody reads is no reason to stay.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH);
    }
}

/// Adds `heddle_log_lines_dropped_total` to a registry.
pub fn register(metrics: &Metrics) -> prometheus::Result<()> {
    metrics.register(Box::new(DROPPED.clone()))
}

impl LogHandle {
    /// Replaces the filter. A filter that cannot be read changes nothing.
    pub fn set_level(&self, filter: &str) -> Result<(), LogError> {
        let filter = parse(filter)?;
        self.0.reload(filter).map_err(|_| LogError::Gone)
    }

    /// The filter in force.
    pub fn level(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, since there is one global logger.
    #[test]
    fn the_level_can_be_changed_and_a_bad_one_changes_nothing() {
        let handle = init_logging("warn", Format::Json).unwrap();
        assert!(!tracing::enabled!(tracing::Level::INFO));
        handle.set_level("info,heddle_runtime=debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(matches!(handle.set_level("heddle=loud"), Err(LogError::Filter { .. })));
        assert_eq!(handle.level(), "heddle_runtime=debug,info");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(matches!(init_logging("info", Format::Text), Err(LogError::AlreadySet(_))));
    }
}
