//! Heddle's control plane: API, store, identity and discovery services.

pub mod store;
