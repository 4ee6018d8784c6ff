//! How a cluster is treated: which endpoint, how often, how much at once.

pub mod balance;
pub mod budget;
pub mod limit;
pub mod outlier;
pub mod retry;
