use std::collections::BTreeSet;

use super::*;

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn every_object_has_a_name_of_its_own_and_is_applied_after_what_it_needs() {
    let objects = manifests(&Values::default());
    let name = |object: &Value| {
        format!("{}/{}/{}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"])
    };
    let names: BTreeSet<String> = objects.iter().map(name).collect();
    assert_eq!(names.len(), objects.len(), "{names:?}");
    assert_eq!(objects[0]["kind"], "Namespace");
    assert_eq!(objects.last().unwrap()["kind"], "MutatingWebhookConfiguration", "what pods wait for comes last");
    for object in &objects {
        assert_eq!(object["metadata"]["labels"][PART_OF], "heddle");
        assert!(object["apiVersion"].is_string(), "{object}");
    }
}

#[test]
fn what_is_removed_is_all_that_is_installed() {
    let values = Values { namespace: "mesh".to_owned(), ..Values::default() };
    let removed = removals(&values);
    assert_eq!(removed[0]["kind"], "MutatingWebhookConfiguration", "so that pods start while the rest goes");
    for object in manifests(&values) {
        let with_namespace = object["metadata"]["namespace"] == "mesh";
        let by_name = removed.iter().any(|removed| {
            removed["kind"] == object["kind"] && removed["metadata"]["name"] == object["metadata"]["name"]
        });
        assert!(with_namespace != by_name, "{object}");
    }
}

#[test]
fn the_control_plane_runs_with_nothing_that_it_does_not_need() {
    let objects = manifests(&Values::default());
    assert_eq!(find(&objects, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let pod = &find(&objects, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert!(
        container["resources"]["requests"]["memory"].is_string()
            && container["resources"]["limits"]["memory"].is_string()
    );
    for rule in find(&objects, "ClusterRole")["rules"].as_array().unwrap() {
        let all = rule.to_string();
        assert!(!all.contains('*') && !all.contains("secrets"), "{rule}");
    }
}

#[test]
fn without_the_webhook_there_is_nothing_of_it() {
    let mut values = Values::default();
    values.webhook.enabled = false;
    let all = manifests(&values).iter().map(ToString::to_string).collect::<String>();
    for part in ["Webhook", "webhook", "9703", "--proxy-image"] {
        assert!(!all.contains(part), "{part}");
    }
}

#[test]
fn a_pod_is_sent_by_one_webhook_at_most() {
    let objects = manifests(&Values::default());
    let webhooks = find(&objects, "MutatingWebhookConfiguration")["webhooks"].as_array().unwrap().clone();
    let matches = |selector: &Value, labels: &[(&str, &str)]| {
        selector["matchExpressions"].as_array().unwrap().iter().all(|expression| {
            let has = labels.iter().find(|(key, _)| expression["key"] == *key);
            let among = has.is_some_and(|(_, value)| expression["values"].as_array().unwrap().contains(&json!(value)));
            if expression["operator"] == "In" { among } else { !among }
        })
    };
    let sent = |namespace: &str, of_namespace: Option<&str>, of_pod: Option<&str>| {
        let mut labels = vec![("kubernetes.io/metadata.name", namespace)];
        labels.extend(of_namespace.map(|value| (INJECT, value)));
        let pod: Vec<_> = of_pod.map(|value| (INJECT, value)).into_iter().collect();
        let matching = |webhook: &&Value| {
            matches(&webhook["namespaceSelector"], &labels) && matches(&webhook["objectSelector"], &pod)
        };
        webhooks.iter().filter(matching).count()
    };
    for (of_namespace, of_pod, times) in [
        (None, None, 0),
        (Some("enabled"), None, 1),
        (Some("enabled"), Some("enabled"), 1),
        (Some("enabled"), Some("disabled"), 0),
        (Some("disabled"), None, 0),
        (Some("disabled"), Some("enabled"), 1),
        (None, Some("enabled"), 1),
    ] {
        assert_eq!(sent("shop", of_namespace, of_pod), times, "{of_namespace:?} {of_pod:?}");
        assert_eq!(sent("kube-system", of_namespace, of_pod), 0);
        assert_eq!(sent("heddle-system", of_namespace, of_pod), 0);
    }
}

#[test]
fn values_are_checked_and_unknown_ones_are_told() {
    assert_eq!(Values::default().check(), Ok(()));
    let mut values = Values { namespace: "kube-system".to_owned(), listen: "host".to_owned(), ..Values::default() };
    values.images.pull_policy = "Sometimes".to_owned();
    values.webhook = Webhook { enabled: true, failure_policy: "ignore".to_owned(), timeout_seconds: 0 };
    values.storage.size = "big".to_owned();
    let paths: Vec<_> = values.check().unwrap_err().iter().map(|fault| fault.path).collect();
    let expected =
        ["namespace", "images.pullPolicy", "webhook.failurePolicy", "webhook.timeoutSeconds", "listen", "storage.size"];
    assert_eq!(paths, expected);
    let error = serde_json::from_value::<Values>(json!({ "images": { "prefx": "x" } })).unwrap_err().to_string();
    assert!(error.contains("prefx"), "{error}");
}
