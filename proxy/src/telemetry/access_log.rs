//! JSON lines, one for each outcome.
