//! Proxies of pods.

use std::collections::BTreeMap;

use super::*;
use crate::mesh::{
    derived::{Change, Derived, Instance as DerivedInstance, Pod},
    tests::objects as objects_of,
};
use heddle_api::resource::AnyObject;

fn cluster(pod_ip: &str) -> Vec<Change> {
    let name = Name::new("shop", "web-1");
    let AnyObject::Service(service) =
        objects_of("{kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}").remove(0)
    else {
        panic!()
    };
    let instance = DerivedInstance {
        workload: name.clone(),
        hostname: None,
        ip: pod_ip.parse().unwrap(),
        account: Some("web".into()),
        ports: vec![(80, 8080)],
        zone: "".into(),
        ready: true,
        secondary: false,
    };
    let pod = Pod {
        name: name.clone(),
        uid: "1".into(),
        ips: vec![pod_ip.parse().unwrap()],
        account: "web".into(),
        labels: Arc::default(),
        owner: "".into(),
        services: BTreeMap::from([(Name::new("shop", "web"), vec![(80, 8080)])]),
    };
    let derived = Derived { service, instances: vec![instance] };
    vec![Change::Service(Name::new("shop", "web"), Some(Arc::new(derived))), Change::Pod(name, Some(Arc::new(pod)))]
}

#[tokio::test]
async fn the_proxy_of_a_pod_writes_nothing_and_says_when_it_leaves() {
    let world = World::new().await;
    let changes = cluster("10.0.0.1");
    world.hub.change(0, |mesh| mesh.derive(&changes));
    let name = Name::new("shop", "web-1");
    let revision = world.registry.view().revision();
    let answer = world.register("web", request("web-1", &["shop/web"])).await.unwrap();
    assert_eq!(answer.lease_seconds, 30);
    assert_eq!(world.registry.view().revision(), revision, "nothing is written");
    assert!(world.registry.view().registration(&name).is_none());
    let leaving = || world.hub.read(|mesh| mesh.is_leaving(&name));
    assert!(!leaving());
    assert!(world.deregister("web", "web-1").await.unwrap().acknowledged);
    assert!(leaving());
    // It stays after all, as its next renewal says.
    world.register("web", request("web-1", &["shop/web"])).await.unwrap();
    assert!(!leaving());
    world.stop.drain();
}

#[tokio::test]
async fn nobody_speaks_for_a_pod_but_its_own_proxy() {
    let world = World::new().await;
    let changes = cluster("10.0.0.9");
    world.hub.change(0, |mesh| mesh.derive(&changes));
    // Another pod of the same service account.
    let refused = world.deregister("web", "web-1").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("10.0.0.1 is no address of pod shop/web-1"), "{refused}");
    let refused = world.register("web", request("web-1", &["shop/web"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Another identity.
    let refused = world.register("orders", request("web-1", &["shop/orders"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(!world.hub.read(|mesh| mesh.is_leaving(&Name::new("shop", "web-1"))));
    world.stop.drain();
}
