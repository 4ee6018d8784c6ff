//! MeshConfig.

use super::{
    common,
    faults::{Faults, Path},
};
use crate::resource::MeshConfigSpec;

pub(super) fn check(spec: &MeshConfigSpec, path: &Path<'_>, faults: &mut Faults) {
    let suffixes = path.field("suffixes");
    for (index, suffix) in spec.suffixes.iter().enumerate() {
        let outcome = common::hostname(suffix)
            .map_err(|_| format!("{suffix:?} is no name suffix; write one such as mesh or svc.cluster.local"));
        faults.check(&suffixes.index(index), outcome);
    }
    faults.unique(&suffixes, &spec.suffixes, |suffix| format!("{suffix:?}"));
    let cidrs = path.field("cidrs");
    for (index, cidr) in spec.cidrs.iter().enumerate() {
        faults.check(&cidrs.index(index), common::cidr(cidr));
    }
    faults.unique(&cidrs, &spec.cidrs, |cidr| format!("{cidr:?}"));
}
