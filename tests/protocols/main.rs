//! Every protocol, unharmed through a pair of proxies, by programs that nobody here wrote.

mod curl;
mod grpc;
mod h2spec;
mod large;
mod nginx;
mod tcp;
mod websocket;
mod world;
