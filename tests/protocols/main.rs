//! Every protocol, unharmed through a pair of proxies, by programs that nobody here wrote.

mod h2spec;
mod world;
