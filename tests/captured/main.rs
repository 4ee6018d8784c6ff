//! Traffic captured as in a pod: two network namespaces, nftables, proxies under a user of their own, and programs
//! that know nothing of any of it. Root only.

mod inbound;
mod link;
mod outbound;
mod protocols;
mod rules;
mod world;
