//! Spans from outcomes, and their export.
