//! Heddle's control plane: API, store, identity and discovery services.
//!
//! [`app`] puts it together: [`config`] -> [`store`] -> [`registry`] -> [`mesh`] -> [`compile`] ->
//! [`discovery`], with [`identity`] and [`registration`] beside it, and [`api`] in front.

pub mod api;
pub mod app;
pub mod authority;
pub mod certificate;
pub mod compile;
pub mod config;
pub mod discovery;
pub mod follow;
pub mod identity;
pub mod kubernetes;
pub mod listener;
pub mod mesh;
pub mod metrics;
mod pace;
pub mod peer;
pub mod registration;
pub mod registry;
pub mod rotation;
pub mod store;
pub mod tokens;
mod turns;
pub mod webhook;
