//! Who has applied the roots of now.

use super::{super::session::Standing, Hub, Inner, Proxy};
use crate::compile::ResourceKind;

impl Hub {
    /// All connected proxies, and whether each has acknowledged the roots that are told now.
    pub fn roots_applied(&self) -> Vec<(Proxy, bool)> {
        let mut inner = self.lock();
        let Inner { catalog, streams, .. } = &mut *inner;
        let present = streams.values().filter(|stream| !stream.replaced.is_cancelled());
        present
            .map(|stream| {
                let session = &stream.session;
                let applied = session.held(ResourceKind::TrustBundle).any(|name| {
                    let current = catalog.resource(ResourceKind::TrustBundle, name, session.viewer());
                    let version = current.as_ref().map(|compiled| &*compiled.version);
                    let standing = session.standing(ResourceKind::TrustBundle, name, version);
                    version.is_some() && matches!(standing, Some(Standing::Applied))
                });
                (stream.proxy.clone(), applied)
            })
            .collect()
    }
}
