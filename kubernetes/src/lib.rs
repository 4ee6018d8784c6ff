//! Heddle in Kubernetes: what becomes of a pod that gets a proxy, as pure functions on manifests; no network.
//!
//! The command line and the control plane's webhook call the same functions, so that a pod looks the same whichever
//! way it was injected.

pub mod inject;
pub mod install;
pub mod names;
pub mod patch;
pub mod pod_security;
pub mod settings;
