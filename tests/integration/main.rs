//! The whole mesh, with the real binaries.

fn main() {}
