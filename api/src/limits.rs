//! How much a proxy takes: what a control plane accepts must stay within it, for a proxy refuses a resource
//! beyond it as a whole.

/// Most bytes of one encoded resource.
pub const MAX_RESOURCE: usize = 4 << 20;
/// Most flat rules (one for each host name and match) of the routes of one port of a service.
pub const MAX_PORT_RULES: usize = 4096;
/// Most regular expressions in the routes of one service, counted for each host name and port.
pub const MAX_SERVICE_REGEXES: usize = 500;
/// Most bytes of the routes of one service; the rest of its resource is small.
pub const MAX_SERVICE_BYTES: usize = MAX_RESOURCE - (256 << 10);
/// Most rules of the authorization policies at one place: a service, a namespace, or the mesh. All three
/// come together at a proxy, which takes 4096.
pub const MAX_PLACE_RULES: usize = 1280;
/// Most bytes of those rules, as JSON.
pub const MAX_PLACE_BYTES: usize = 1 << 20;
/// Most DENY rules that a service has from other places, because routes lead to it from there.
pub const MAX_INHERITED_RULES: usize = 256;
/// Most operations of those rules, as routes translate them.
pub const MAX_INHERITED_OPERATIONS: usize = 2048;
/// Most bytes of those rules, as JSON.
pub const MAX_INHERITED_BYTES: usize = 512 << 10;
/// Most matches of all rules of a route, as in the Gateway API.
pub const MAX_ROUTE_MATCHES: usize = 128;
/// Most pairs of a host name and a match of a route.
pub const MAX_ROUTE_RULES: usize = 1024;
/// Most regular expressions of a route.
pub const MAX_ROUTE_REGEXES: usize = 256;
