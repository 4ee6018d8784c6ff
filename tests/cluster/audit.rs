//! The rights that the control plane has, against those that it used.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::world::World;

/// No right is granted that no step here made use of, by the API server's own audit log.
pub(crate) fn every_right_is_used(world: &mut World) {
    let role = world.json("get clusterrole heddle-control-plane");
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        let texts = |key: &str| rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        for group in texts("apiGroups") {
            for resource in texts("resources") {
                granted.extend(texts("verbs").map(|verb| format!("{verb} {resource}.{group}")));
            }
        }
    }
    let log = std::fs::read_to_string(world.state().join("audit.log")).expect("an audit log");
    let mut used = BTreeSet::new();
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        if event["user"]["username"] != "system:serviceaccount:heddle-system:heddle-control-plane" {
            continue;
        }
        let (verb, object) = (event["verb"].as_str().unwrap_or_default(), &event["objectRef"]);
        let text = |key: &str| object[key].as_str().unwrap_or_default();
        let right = format!("{verb} {}.{}", text("resource"), text("apiGroup"));
        assert_ne!(event["responseStatus"]["code"], 403, "{right} is needed and not granted: {event}");
        used.insert(right);
    }
    let surplus: Vec<_> = granted.difference(&used).collect();
    assert!(surplus.is_empty(), "granted, and not used by anything: {surplus:?}; used: {used:?}");
}
