//! Heddle's control plane: API, store, identity and discovery services.

pub mod api;
pub mod compile;
pub mod mesh;
pub mod registry;
pub mod store;
pub mod tokens;
