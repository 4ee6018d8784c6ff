//! Heddle's control plane: API, store, identity and discovery services.

pub mod compile;
pub mod mesh;
pub mod store;
