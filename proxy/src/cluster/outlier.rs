//! When an endpoint is ejected, and when it may come back.
