//! Heddle's contract, shared by both daemons and the command line: the protobuf services between
//! proxies and the control plane ([`proto`]) and the resource types of the control-plane API
//! ([`resource`]).

pub mod document;
pub mod limits;
pub mod problem;
pub mod proto;
pub mod resource;
pub mod schema;
pub mod validate;
