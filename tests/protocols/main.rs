//! Every protocol, unharmed through a pair of proxies, by programs that nobody here wrote.

mod curl;
mod h2spec;
mod nginx;
mod world;
