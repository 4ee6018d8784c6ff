//! The state directory: what a restart needs when no control plane answers.

pub use heddle_runtime::private_dir::{PrivateDir as StateDir, PrivateDirError as StateError};
