use std::sync::Arc;

use heddle_api::resource::{AnyObject, Name, ObjectKind, ServiceSpec};
use serde_json::json;

use super::*;
use crate::store::{RedbOptions, RedbStore};

async fn registry(folder: &tempfile::TempDir) -> Arc<Registry> {
    let store = RedbStore::open(&folder.path().join("store.redb"), &RedbOptions::default()).unwrap();
    Registry::open(Arc::new(store)).await.unwrap()
}

fn author() -> Author {
    Author { name: "tester".to_owned(), reason: None }
}

fn service(name: &str, port: u16) -> AnyObject {
    let document = json!({
        "apiVersion": "heddle.dev/v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": port}]},
    });
    AnyObject::from_value(ObjectKind::Service, document).unwrap()
}

fn apply(object: AnyObject) -> Operation {
    Operation::Apply { object, expected: None }
}

fn delete(name: &str) -> Operation {
    Operation::Delete { kind: ObjectKind::Service, name: Name::new("shop", name), expected: None }
}

fn ports(view: &View) -> Vec<(String, u16)> {
    view.list::<ServiceSpec>().map(|object| (object.metadata.name.clone(), object.spec.ports[0].port)).collect()
}

#[tokio::test]
async fn a_transaction_makes_one_revision() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    let (view, mut changes) = registry.subscribe();
    assert!(view.is_empty());
    let both = vec![apply(service("a", 1)), apply(service("b", 2))];
    let dry = registry.apply(both.clone(), &author(), true).await.unwrap();
    assert_eq!((dry.number, dry.results[0].action), (0, Action::Created));
    assert!(registry.view().is_empty());

    let applied = registry.apply(both.clone(), &author(), false).await.unwrap();
    assert_eq!(applied.number, 1);
    let version = applied.results[0].object.metadata().resource_version.clone();
    assert_eq!(version, Some(registry.store().revision().to_string()));
    assert_eq!(registry.view().object(ObjectKind::Service, &Name::new("shop", "a")), Some(&applied.results[0].object));
    let Some(Update::Changed(set)) = changes.next().await else { panic!("no change") };
    assert_eq!((set.number, set.objects.len()), (Some(1), 2));

    let again = registry.apply(both, &author(), false).await.unwrap();
    assert_eq!(again.number, 1, "nothing changed, so no revision");
    assert!(again.results.iter().all(|result| result.action == Action::Unchanged));

    let applied = registry.apply(vec![apply(service("a", 9)), delete("b")], &author(), false).await.unwrap();
    assert_eq!(applied.number, 2);
    assert_eq!(applied.results[0].object.metadata().generation, Some(2));
    assert_eq!(applied.results[1].action, Action::Deleted);
    assert_eq!(ports(&registry.view()), [("a".to_owned(), 9)]);
    assert!(matches!(
        registry.apply(vec![apply(service("c", 3)), delete("b")], &author(), false).await,
        Err(ApplyError::NotFound(..))
    ));
    assert_eq!(ports(&registry.view()).len(), 1, "all or nothing");
    let twice = registry.apply(vec![apply(service("c", 3)), apply(service("c", 4))], &author(), false).await;
    assert!(matches!(twice, Err(ApplyError::Invalid(faults)) if faults[0].operation == 1));
}

#[tokio::test]
async fn writers_that_name_a_revision_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    let only_new = |port| vec![Operation::Apply { object: service("a", port), expected: Some(Expected::Absent) }];
    registry.apply(only_new(1), &author(), false).await.unwrap();
    let taken = registry.apply(only_new(2), &author(), false).await;
    assert!(matches!(taken, Err(ApplyError::PreconditionFailed { found: Some(1), .. })));
    let at = |revision, port| {
        vec![Operation::Apply { object: service("a", port), expected: Some(Expected::Revision(revision)) }]
    };
    registry.apply(at(1, 2), &author(), false).await.unwrap();
    assert!(registry.apply(at(1, 3), &author(), false).await.is_err());
    assert_eq!(ports(&registry.view()), [("a".to_owned(), 2)]);
}

#[tokio::test]
async fn revisions_can_be_compared_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    for operations in [
        vec![apply(service("a", 1)), apply(service("b", 1))],
        vec![apply(service("a", 2)), delete("b")],
        vec![apply(service("a", 3)), apply(service("c", 1))],
    ] {
        registry.apply(operations, &author(), false).await.unwrap();
    }
    let revisions = registry.revisions();
    let summaries = revisions.list().await.unwrap();
    assert_eq!(summaries.len(), 3);
    assert_eq!(summaries[1].counts, Counts { created: 0, updated: 1, deleted: 1 });
    let (_, changes) = revisions.get(2).await.unwrap();
    assert_eq!(changes.len(), 2);

    let diff = revisions.diff(1, 3).await.unwrap();
    let shown: Vec<_> = diff.iter().map(|one| (one.name.as_str(), one.before.is_some(), one.after.is_some())).collect();
    assert_eq!(shown, [("a", true, true), ("b", true, false), ("c", false, true)]);
    assert_eq!(diff[0].before.as_ref().unwrap()["spec"]["ports"][0]["port"], 1);
    assert_eq!(diff[0].after.as_ref().unwrap()["spec"]["ports"][0]["port"], 3);
    let back = revisions.diff(3, 1).await.unwrap();
    assert_eq!((&back[0].before, &back[0].after), (&diff[0].after, &diff[0].before));
    assert!(revisions.diff(2, 2).await.unwrap().is_empty());

    let dry = registry.rollback(1, None, &author(), true).await.unwrap();
    assert_eq!((dry.number, dry.results.len()), (3, 3));
    let applied = registry.rollback(1, None, &author(), false).await.unwrap();
    assert_eq!(applied.number, 4);
    assert_eq!(ports(&registry.view()), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    let a = registry.view().get::<ServiceSpec>(&Name::new("shop", "a")).unwrap().metadata.clone();
    assert_eq!(a.generation, Some(4), "a rollback is a change like any other");
    for one in registry.revisions().diff(1, 4).await.unwrap() {
        let spec = |side: &Option<serde_json::Value>| side.as_ref().unwrap()["spec"].clone();
        assert_eq!(spec(&one.before), spec(&one.after), "only generations have gone on");
    }
    assert_eq!(registry.revisions().list().await.unwrap()[3].reason.as_deref(), Some("rollback to revision 1"));
    registry.rollback(0, None, &author(), false).await.unwrap();
    assert!(ports(&registry.view()).is_empty());
    assert!(matches!(
        registry.rollback(99, None, &author(), false).await,
        Err(RollbackError::Revision(RevisionError::NotFound(99)))
    ));
}

#[tokio::test]
async fn registrations_make_no_revision_and_survive() {
    let folder = tempfile::tempdir().unwrap();
    let first = registry(&folder).await;
    first.apply(vec![apply(service("a", 1))], &author(), false).await.unwrap();
    let registration = Registration {
        name: Name::new("shop", "a-1"),
        revision: 0,
        identity: "spiffe://heddle.local/ns/shop/sa/a".to_owned(),
        address: "10.0.0.1:15006".parse().unwrap(),
        services: [("shop/a".to_owned(), vec![1])].into(),
        app_ports: [("shop/a".to_owned(), [(1, 8001)].into())].into(),
        labels: [("version".to_owned(), "v2".to_owned())].into(),
        zone: "z".to_owned(),
        version: "0.1.0".to_owned(),
        ready: true,
    };
    let (_, mut changes) = first.subscribe();
    assert!(first.register(&registration, None).await.unwrap());
    let revision = first.view().revision();
    let known = first.view().registration(&registration.name).cloned();
    assert!(first.register(&registration, known.as_deref()).await.unwrap());
    assert_eq!(first.view().revision(), revision, "a renewal writes nothing");
    let other = Registration { identity: "spiffe://heddle.local/ns/shop/sa/b".to_owned(), ..registration.clone() };
    assert!(!first.register(&other, None).await.unwrap(), "the name is taken");
    assert_eq!(first.view().registration(&registration.name).unwrap().identity, registration.identity);
    assert_eq!(first.view().number(), 1);
    let Some(Update::Changed(set)) = changes.next().await else { panic!("no change") };
    assert_eq!((set.number, set.registrations.len()), (None, 1));
    drop(changes);
    drop(first);

    let again = registry(&folder).await;
    let workload = again.view().registration(&registration.name).unwrap().to_workload();
    assert_eq!(workload.spec.service_account.as_deref(), Some("a"));
    assert_eq!(workload.metadata.labels["heddle.dev/registered"], "true");
    let gone = Operation::Delete { kind: ObjectKind::Workload, name: registration.name.clone(), expected: None };
    assert!(matches!(again.apply(vec![gone], &author(), false).await, Err(ApplyError::Registered(_))));
    let known = Arc::clone(again.view().registration(&registration.name).unwrap());
    let older = Arc::new(Registration { revision: known.revision - 1, ..(*known).clone() });
    assert!(!again.deregister(&[older]).await.unwrap(), "it is another by now");
    assert!(again.deregister(&[known]).await.unwrap());
    assert!(again.view().registration(&registration.name).is_none());
}

#[tokio::test]
async fn a_subscriber_that_lags_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    let (_, mut changes) = registry.subscribe();
    for port in 0..FEED + 10 {
        let operations = vec![apply(service("a", u16::try_from(port).unwrap() + 1))];
        registry.apply(operations, &author(), false).await.unwrap();
    }
    let Some(Update::Resync(view)) = changes.next().await else { panic!("should have lagged") };
    assert_eq!(view.revision(), registry.view().revision());
    registry.apply(vec![delete("a")], &author(), false).await.unwrap();
    assert!(matches!(changes.next().await, Some(Update::Changed(set)) if set.number == Some(registry.view().number())));
    let oldest = registry.revisions().list().await.unwrap()[0].revision;
    assert_eq!(oldest, registry.view().number() - 999, "only the newest are kept");
    assert!(matches!(registry.revisions().get(1).await, Err(RevisionError::Gone { requested: 1, .. })));
    registry.rollback(oldest, None, &author(), true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn past_views_are_kept_for_a_while_and_never_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    for port in 1..=9 {
        registry.apply(vec![apply(service("a", port))], &author(), false).await.unwrap();
        if port < 4 {
            registry.keep(&registry.view());
        }
    }
    for revision in [3, 1, 9, 3] {
        let view = registry.view_at(revision).unwrap();
        assert_eq!(ports(&view), [("a".to_owned(), u16::try_from(revision).unwrap())]);
    }
    assert!(matches!(registry.view_at(5), Err(StoreError::Compacted { requested: 5, .. })), "nobody pages through it");
    assert!(matches!(registry.view_at(99), Err(StoreError::Future { .. })));
    tokio::time::advance(KEPT_FOR - Duration::from_secs(1)).await;
    registry.keep(&registry.view_at(3).unwrap());
    tokio::time::advance(Duration::from_secs(2)).await;
    registry.keep(&registry.view());
    assert!(registry.view_at(3).is_ok(), "another page was asked for");
    assert!(registry.view_at(1).is_err());
}

#[tokio::test]
async fn what_a_rollback_makes_again_has_its_age() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    let mut recorded = service("a", 1);
    recorded.metadata_mut().creation_timestamp = Some("2020-01-01T00:00:00Z".to_owned());
    recorded.metadata_mut().generation = Some(7);
    let restore = |registry: Arc<Registry>| {
        let operations = vec![Operation::Restore(recorded.clone())];
        async move { registry.apply(operations, &author(), false).await.unwrap().results.remove(0).object }
    };
    let made = restore(Arc::clone(&registry)).await;
    let age = |object: &AnyObject| (object.metadata().creation_timestamp.clone(), object.metadata().generation);
    assert_eq!(age(&made), (recorded.metadata().creation_timestamp.clone(), Some(8)), "older routes go first");

    // Made anew in the meantime: it is as old as it was.
    registry.apply(vec![delete("a")], &author(), false).await.unwrap();
    registry.apply(vec![apply(service("a", 2))], &author(), false).await.unwrap();
    let back = restore(registry).await;
    assert_eq!(age(&back), (recorded.metadata().creation_timestamp.clone(), Some(2)));
}

#[tokio::test]
async fn a_rollback_undoes_only_what_its_caller_has_seen() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    for port in 1..=3 {
        registry.apply(vec![apply(service("a", port))], &author(), false).await.unwrap();
    }
    let moved = registry.rollback(1, Some(2), &author(), false).await;
    assert!(matches!(moved, Err(RollbackError::Moved { expected: 2, found: 3 })), "{moved:?}");
    assert_eq!(ports(&registry.view()), [("a".to_owned(), 3)]);
    registry.rollback(1, Some(3), &author(), false).await.unwrap();
    assert_eq!(ports(&registry.view()), [("a".to_owned(), 1)]);
}

#[tokio::test]
async fn a_mesh_keeps_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    let document = json!({
        "apiVersion": "heddle.dev/v1", "kind": "MeshConfig", "metadata": {"name": "mesh"}, "spec": {"egress": "allow"},
    });
    let settings = AnyObject::from_value(ObjectKind::MeshConfig, document).unwrap();
    let name = settings.name();
    registry.apply(vec![apply(settings)], &author(), false).await.unwrap();
    let delete = Operation::Delete { kind: ObjectKind::MeshConfig, name: name.clone(), expected: None };
    let refused = registry.apply(vec![apply(service("a", 1)), delete], &author(), false).await;
    assert!(matches!(&refused, Err(ApplyError::Invalid(faults)) if faults[0].operation == 1), "{refused:?}");
    assert!(ports(&registry.view()).is_empty());

    registry.rollback(0, None, &author(), false).await.unwrap();
    let view = registry.view();
    let settings = view.get::<heddle_api::resource::MeshConfigSpec>(&name).unwrap();
    assert_eq!(settings.spec, serde_json::from_value(json!({})).unwrap(), "before the first, they were the defaults");
}

#[tokio::test]
async fn registrations_are_found_by_identity_and_address() {
    let folder = tempfile::tempdir().unwrap();
    let registry = registry(&folder).await;
    let registration = |name: &str, account: &str, port: u16| Registration {
        name: Name::new("shop", name),
        revision: 0,
        identity: format!("spiffe://heddle.local/ns/shop/sa/{account}"),
        address: ([10, 0, 0, 1], port).into(),
        services: std::collections::BTreeMap::new(),
        app_ports: std::collections::BTreeMap::new(),
        labels: std::collections::BTreeMap::new(),
        zone: String::new(),
        version: String::new(),
        ready: true,
    };
    for (name, account, port) in [("b", "x", 1), ("a", "x", 1), ("c", "x", 2), ("d", "y", 1)] {
        assert!(registry.register(&registration(name, account, port), None).await.unwrap());
    }
    let x = registration("a", "x", 1).identity;
    let placed = |view: &View, port: u16| -> Vec<String> {
        view.placed_at(&x, ([10, 0, 0, 1], port).into()).map(|one| one.name.name.to_string()).collect()
    };
    let view = registry.view();
    assert_eq!(
        (placed(&view, 1), placed(&view, 2), placed(&view, 3)),
        (vec!["a".into(), "b".into()], vec!["c".into()], vec![])
    );
    assert_eq!(view.held_by(&x), 3);
    // One moves, one goes.
    let known = Arc::clone(view.registration(&Name::new("shop", "a")).unwrap());
    assert!(registry.register(&registration("a", "x", 2), Some(&*known)).await.unwrap());
    assert!(registry.deregister(&[Arc::clone(view.registration(&Name::new("shop", "b")).unwrap())]).await.unwrap());
    let view = registry.view();
    assert_eq!((placed(&view, 1), placed(&view, 2)), (Vec::<String>::new(), vec!["a".into(), "c".into()]));
    assert_eq!(view.held_by(&x), 2);
}
