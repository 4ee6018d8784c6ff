//! The whole mesh, with the real binaries: a control plane, proxies, and apps beside them.

mod calls;
mod cli;
mod docs;
mod jaeger;
mod life;
mod resilience;
mod roots;
mod world;
