use super::*;
use crate::{names::ORIGINAL, patch::json_patch};

fn injector() -> Injector {
    Injector {
        image: "registry.example/heddle-proxy:1".to_owned(),
        capture_image: Some("registry.example/heddle-capture:1".to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        control_plane: "heddle-control-plane.heddle-system.svc:9701".to_owned(),
        trust_domain: "heddle.local".to_owned(),
        trust_roots: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        tracing_endpoint: None,
        hook_key: "k3y".to_owned(),
    }
}

fn pod(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "namespace": "shop" }, "spec": spec })
}

fn plain() -> Value {
    pod(json!({ "containers": [{ "name": "app", "image": "app:1" }] }))
}

/// An object with the pod as its template.
fn within(api_version: &str, kind: &str, pod: &Value) -> Value {
    let template = json!({ "metadata": { "labels": { "app": "a" } }, "spec": pod["spec"] });
    let spec = match kind {
        "CronJob" => json!({ "schedule": "* * * * *", "jobTemplate": { "spec": { "template": template } } }),
        _ => json!({ "template": template }),
    };
    json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": "a" }, "spec": spec })
}

fn made(mut object: Value, pods: &[Pod]) -> Value {
    for pod in pods {
        let Outcome::Changed(changes) = &pod.outcome else { continue };
        changes.iter().for_each(|change| change.apply(&mut object).unwrap());
    }
    object
}

fn injected(object: &Value) -> Value {
    made(object.clone(), &injector().inject(object, Some(Inject::Enabled)).unwrap())
}

fn fault(spec: Value) -> String {
    injector().inject(&pod(spec), Some(Inject::Enabled)).unwrap_err().to_string()
}

#[track_caller]
fn goes_and_comes_back(object: &Value) -> Value {
    let injected = injected(object);
    assert_ne!(injected, *object);
    let again = injector().inject(&injected, Some(Inject::Enabled)).unwrap();
    assert!(again.iter().all(|pod| matches!(pod.outcome, Outcome::Left(Reason::Injected(_)))), "{again:?}");
    assert_eq!(made(injected.clone(), &uninject(&injected).unwrap()), *object);
    injected
}

#[test]
fn a_pod_gets_capture_and_then_the_proxy_before_its_own() {
    let object = pod(json!({
        "initContainers": [{ "name": "migrate", "image": "m:1" }],
        "containers": [{ "name": "app", "image": "app:1" }],
        "volumes": [{ "name": "data", "emptyDir": {} }],
    }));
    let injected = goes_and_comes_back(&object);
    let spec = &injected["spec"];
    let names = |list: &str| items(spec, list).map(|item| item["name"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(names("initContainers"), ["heddle-capture", "heddle-proxy", "migrate"]);
    assert_eq!(names("volumes"), ["heddle-state", "heddle-token", "data"]);
    assert_eq!(names("containers"), ["app"]);

    let capture = &spec["initContainers"][0];
    assert_eq!(capture["image"], "registry.example/heddle-capture:1");
    assert_eq!(capture["securityContext"]["capabilities"], json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] }));
    assert_eq!(capture["args"][2], "--skip-inbound-ports=15020");

    let proxy = &spec["initContainers"][1];
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["startupProbe"]["httpGet"], json!({ "path": "/startup", "port": 15020 }));
    let context = &proxy["securityContext"];
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(context["runAsUser"], 2102);
    assert_eq!(
        (&context["readOnlyRootFilesystem"], &context["allowPrivilegeEscalation"]),
        (&json!(true), &json!(false))
    );
    let variable = |name: &str| items(proxy, "env").find(|variable| variable["name"] == name).unwrap();
    assert_eq!(variable("HEDDLE_PROXY_WORKLOAD")["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
    assert_eq!(variable("HEDDLE_TRUST_ROOTS")["value"], injector().trust_roots);
    assert_eq!(spec["volumes"][0]["emptyDir"]["medium"], "Memory");
    let token = &spec["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(*token, json!({ "audience": "heddle.dev", "expirationSeconds": 3600, "path": "token" }));
}

#[test]
fn every_kind_that_makes_pods_is_known_and_no_other() {
    let kinds = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"].map(|kind| ("apps/v1", kind)).into_iter();
    for (api_version, kind) in kinds.chain([("batch/v1", "Job"), ("batch/v1", "CronJob")]) {
        let injected = goes_and_comes_back(&within(api_version, kind, &plain()));
        let text = injected.to_string();
        assert_eq!(text.matches("\"heddle-proxy\"").count(), 1, "{kind}");
        assert!(injected["metadata"].get("annotations").is_none(), "{kind}: its template is what changes");
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
        plain(), { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" } },
        { "apiVersion": "v1", "kind": "List", "items": [within("apps/v1", "Deployment", &plain())] },
    ] });
    assert_eq!(goes_and_comes_back(&list).to_string().matches("\"heddle-proxy\"").count(), 2);
    for other in [
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" } }),
        within("example.com/v1", "Deployment", &plain()),
        json!({ "kind": "Pod" }),
        json!(7),
    ] {
        assert_eq!(injector().inject(&other, Some(Inject::Enabled)).unwrap(), []);
    }
}

#[test]
fn what_was_absent_null_or_empty_is_so_again() {
    for metadata in [json!({}), json!({ "annotations": {} }), json!({ "annotations": null }), Value::Null] {
        for (init, volumes) in [(json!([]), json!(null)), (json!(null), json!([]))] {
            let mut object = plain();
            object["metadata"] = metadata.clone();
            object["spec"]["initContainers"] = init;
            object["spec"]["volumes"] = volumes;
            goes_and_comes_back(&object);
        }
    }
    let mut object = plain();
    object.as_object_mut().unwrap().remove("metadata");
    goes_and_comes_back(&object);
}

#[test]
fn who_asks_and_who_does_not() {
    let outcome = |labels: Value, annotations: Value, default| {
        let mut object = plain();
        object["metadata"] = json!({ "labels": labels, "annotations": annotations });
        match injector().inject(&object, default).unwrap().remove(0).outcome {
            Outcome::Changed(_) => None,
            Outcome::Left(reason) => Some(reason),
        }
    };
    let says = |word: &str| json!({ "heddle.dev/inject": word });
    assert_eq!(outcome(json!({}), json!({}), None), Some(Reason::NotAsked));
    assert_eq!(outcome(json!({}), json!({}), Some(Inject::Disabled)), Some(Reason::NotAsked));
    assert_eq!(outcome(says("enabled"), json!({}), Some(Inject::Disabled)), None);
    assert_eq!(outcome(json!({}), says("enabled"), None), None);
    assert_eq!(outcome(says("disabled"), json!({}), Some(Inject::Enabled)), Some(Reason::Disabled));

    let host = |word: Value| {
        let mut object = plain();
        object["spec"]["hostNetwork"] = word;
        injector().inject(&object, Some(Inject::Enabled)).unwrap().remove(0).outcome
    };
    assert_eq!(host(json!(true)), Outcome::Left(Reason::HostNetwork));
    assert_eq!(host(json!("yes")), Outcome::Left(Reason::HostNetwork));
    assert!(matches!(host(json!(false)), Outcome::Changed(_)));
}

#[test]
fn settings_reach_the_containers() {
    let mut object = plain();
    object["metadata"]["annotations"] = json!({
        "heddle.dev/skip-inbound-ports": "9000",
        "heddle.dev/skip-outbound-ports": "25,587",
        "heddle.dev/skip-outbound-subnets": "192.0.2.0/24",
        "heddle.dev/log-level": "debug",
        "heddle.dev/drain-deadline": "45s",
        "heddle.dev/access-log": "off",
        "heddle.dev/image": "mine:2",
    });
    let injected = goes_and_comes_back(&object);
    let containers = &injected["spec"]["initContainers"];
    assert_eq!(
        containers[0]["args"],
        json!([
            "capture",
            "--uid=2102",
            "--skip-inbound-ports=15020,9000",
            "--skip-outbound-ports=53,25,587",
            "--skip-subnets=192.0.2.0/24",
        ])
    );
    assert_eq!((&containers[0]["image"], &containers[1]["image"]), (&json!("mine:2"), &json!("mine:2")));
    let env = containers[1]["env"].to_string();
    for (name, value) in [("LOG", "debug"), ("PROXY_DRAIN_DEADLINE", "45s"), ("PROXY_ACCESS_LOG", "off")] {
        assert!(env.contains(&format!(r#"{{"name":"HEDDLE_{name}","value":"{value}"}}"#)), "{env}");
    }
    object["metadata"]["annotations"] = json!({ "heddle.dev/opaqueports": "1" });
    let refused = injector().inject(&object, Some(Inject::Enabled)).unwrap_err().to_string();
    assert!(refused.starts_with("Pod shop/a: annotation heddle.dev/opaqueports: means nothing"), "{refused}");
}

#[test]
fn what_would_go_wrong_is_refused_by_name() {
    let app = json!({ "name": "app" });
    for (spec, says) in [
        (json!({ "containers": [{ "name": "heddle-proxy" }] }), "Pod shop/a: container heddle-proxy is there already"),
        (json!({ "containers": [app], "initContainers": [{ "name": "heddle-capture" }] }), "container heddle-capture"),
        (json!({ "containers": [app], "volumes": [{ "name": "heddle-token" }] }), "volume heddle-token is there"),
        (json!({ "containers": [{ "name": "app", "ports": [{ "containerPort": 15006 }] }] }), "app has port 15006"),
        (json!({ "containers": [app], "securityContext": { "runAsUser": 2102 } }), "the pod runs as user 2102"),
        (json!({ "containers": [{ "name": "app", "securityContext": { "runAsUser": 2102 } }] }), "container app runs"),
        (json!({ "containers": [app], "volumes": "all" }), "/spec/volumes is not as it should be"),
        (json!("x"), "the pod's spec is not as it should be"),
        (
            json!({ "containers": [{ "name": "app", "livenessProbe": { "httpGet": { "port": "web" } } }] }),
            "container app, liveness: there is no port \"web\" among",
        ),
    ] {
        let said = fault(spec.clone());
        assert!(said.contains(says), "{spec}: {said}");
    }
    let mut stale = plain();
    stale["metadata"]["annotations"] = json!({ "heddle.dev/status": "{}" });
    let said = injector().inject(&stale, Some(Inject::Enabled)).unwrap_err().to_string();
    assert!(said.contains("remove the annotation"), "{said}");
}

#[test]
fn probes_are_asked_of_the_proxy_and_given_back() {
    let http = json!({ "path": "/healthz?a=$(B)$$", "port": "web", "httpHeaders": [{ "name": "X", "value": "y" }] });
    let object = pod(json!({
        "initContainers": [
            { "name": "other", "restartPolicy": "Always", "startupProbe": { "tcpSocket": { "port": 7000 } } },
        ],
        "containers": [{
            "name": "app",
            "ports": [{ "name": "web", "containerPort": 8080 }],
            "livenessProbe": { "httpGet": http, "timeoutSeconds": 3, "periodSeconds": 7 },
            "readinessProbe": { "grpc": { "port": 9000, "service": "x" } },
            "startupProbe": { "exec": { "command": ["true"] } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 8080 } }, "postStart": { "sleep": { "seconds": 1 } } },
        }, {
            "name": "free",
            "livenessProbe": { "tcpSocket": { "port": "9100" } },
            "readinessProbe": { "httpGet": { "host": "192.0.2.1", "port": 80 } },
        }],
    }));
    let mut object = object;
    object["metadata"]["annotations"] = json!({ "heddle.dev/skip-inbound-ports": "9100" });
    let injected = goes_and_comes_back(&object);
    let spec = &injected["spec"];
    let app = &spec["containers"][0];
    let rewritten = json!({ "path": "/probe/app/liveness", "port": 15020 });
    assert_eq!(app["livenessProbe"], json!({ "httpGet": rewritten, "timeoutSeconds": 3, "periodSeconds": 7 }));
    assert_eq!(app["readinessProbe"], json!({ "httpGet": { "path": "/probe/app/readiness", "port": 15020 } }));
    assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["path"], "/probe/app/pre-stop/k3y");
    assert_eq!(app["startupProbe"], object["spec"]["containers"][0]["startupProbe"]);
    assert_eq!(spec["containers"][1], object["spec"]["containers"][1]);
    assert_eq!(spec["initContainers"][2]["startupProbe"]["httpGet"]["path"], "/probe/other/startup");
    let variable =
        items(&spec["initContainers"][1], "env").find(|variable| variable["name"] == "HEDDLE_PROBES").unwrap();
    // As the kubelet gives it to the proxy.
    let text = variable["value"].as_str().unwrap().replace("$$", "$");
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        told,
        json!({
            "other/startup": { "tcpSocket": { "port": 7000 }, "port": 7000, "timeoutSeconds": 1 },
            "app/liveness": { "httpGet": http, "port": 8080, "timeoutSeconds": 3 },
            "app/readiness": { "grpc": { "port": 9000, "service": "x" }, "port": 9000, "timeoutSeconds": 1 },
            "app/pre-stop/k3y": { "httpGet": { "path": "/bye", "port": 8080 }, "port": 8080, "timeoutSeconds": 30 },
        })
    );
    // One that was changed by hand since is not put back.
    let mut changed = injected.clone();
    changed["spec"]["containers"][0]["livenessProbe"] = json!({ "exec": {} });
    let back = made(changed.clone(), &uninject(&changed).unwrap());
    assert_eq!(back["spec"]["containers"][0]["livenessProbe"], json!({ "exec": {} }));
}

#[test]
fn what_others_added_since_stays_and_what_cannot_be_read_is_refused() {
    let mut object = injected(&plain());
    object["metadata"]["annotations"]["more"] = json!("x");
    object["metadata"]["annotations"][ORIGINAL] = json!("{}");
    object["spec"]["initContainers"].as_array_mut().unwrap().push(json!({ "name": "late" }));
    let back = made(object.clone(), &uninject(&object).unwrap());
    assert_eq!(back["metadata"]["annotations"], json!({ "more": "x" }));
    assert_eq!(back["spec"]["initContainers"], json!([{ "name": "late" }]));
    assert!(back["spec"].get("volumes").is_none());
    assert_eq!(uninject(&plain()).unwrap()[0].outcome, Outcome::Left(Reason::NotInjected));
    object["metadata"]["annotations"][STATUS] = json!("x");
    assert!(uninject(&object).unwrap_err().to_string().contains("annotation heddle.dev/status is not as"));
}

#[test]
fn the_patch_says_the_same() {
    let object = plain();
    let pods = injector().inject(&object, Some(Inject::Enabled)).unwrap();
    let Outcome::Changed(changes) = &pods[0].outcome else { panic!("{pods:?}") };
    let paths: Vec<_> = json_patch(changes).as_array().unwrap().iter().map(|op| op["path"].clone()).collect();
    assert_eq!(paths, ["/spec/volumes", "/spec/initContainers", "/metadata/annotations"]);
}
