//! What Heddle's two daemons share: draining, signals, logging, limits, the small HTTP server of their
//! admin and health ports, and metrics about the process itself.

pub mod accept;
pub mod backoff;
pub mod descriptors;
pub mod drain;
pub mod health;
pub mod http_server;
pub mod private_dir;
pub mod process;
pub mod signal;
pub mod telemetry;
