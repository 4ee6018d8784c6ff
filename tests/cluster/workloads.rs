//! Pods of other kinds: those that end, those with names of their own, those that are probed.

use std::time::Duration;

use crate::world::{World, wait};

const JOBS: &str = "
apiVersion: batch/v1
kind: Job
metadata: { name: once }
spec:
  backoffLimit: 0
  template:
    metadata: { labels: { app: once } }
    spec:
      serviceAccountName: customer
      restartPolicy: Never
      containers:
        - name: tools
          image: localhost/tools:1
          imagePullPolicy: IfNotPresent
          command: [curl, -sSf, --max-time, '10', 'http://storefront/products']
---
apiVersion: batch/v1
kind: CronJob
metadata: { name: often }
spec:
  schedule: '* * * * *'
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          serviceAccountName: customer
          restartPolicy: Never
          containers:
            - name: tools
              image: localhost/tools:1
              imagePullPolicy: IfNotPresent
              command: [curl, -sSf, --max-time, '10', 'http://storefront/products']
";

/// They end when their app has, which reached its service from its first moment.
pub(crate) fn jobs_end(world: &mut World) {
    world.apply_meshed("shop", JOBS);
    let ended = |name: &str| {
        let done = world.try_kubectl(&format!("-n shop wait --for=condition=Complete {name} --timeout=60s"));
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
        let job = name.trim_start_matches("job/");
        let pods = world.json(&format!("-n shop get pods -l job-name={job}"));
        assert_eq!(pods["items"][0]["status"]["phase"], "Succeeded", "{pods}");
        let injected = pods["items"][0]["spec"]["initContainers"].to_string();
        assert!(injected.contains("heddle-proxy"), "{injected}");
    };
    ended("job/once");
    // Not waited for to the minute: as the controller would make it.
    world.kubectl("-n shop create job often-now --from=cronjob/often");
    ended("job/often-now");
    let made = wait("the cron job's own", Duration::from_secs(75), || {
        let jobs = world.kubectl("-n shop get jobs -o name");
        let by_time = jobs.lines().filter(|job| job.contains("/often-") && !job.contains("often-now"));
        by_time.map(str::to_owned).next().ok_or(jobs.clone())
    });
    ended(&made.replace("job.batch/", "job/"));
    world.kubectl("-n shop delete cronjob/often job/once --wait=false");
}

const STATEFUL: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: { name: stateful }
---
apiVersion: v1
kind: Service
metadata: { name: stateful }
spec:
  clusterIP: None
  selector: { app: stateful }
  ports: [{ name: http, port: 8080, appProtocol: http }]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: stateful }
spec:
  serviceName: stateful
  replicas: 2
  podManagementPolicy: Parallel
  selector: { matchLabels: { app: stateful } }
  template:
    metadata: { labels: { app: stateful } }
    spec:
      serviceAccountName: stateful
      terminationGracePeriodSeconds: 5
      containers:
        - name: payments
          image: localhost/heddle-shop:0.1.0
          imagePullPolicy: IfNotPresent
          args: [payments]
          env:
            - { name: SHOP_LISTEN, value: '0.0.0.0:8080' }
            - { name: SHOP_DB, value: /data/payments.db }
          ports: [{ name: http, containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /healthz, port: http }, periodSeconds: 1 }
          livenessProbe: { tcpSocket: { port: http }, periodSeconds: 2 }
          volumeMounts: [{ name: data, mountPath: /data }]
      volumes: [{ name: data, emptyDir: {} }]
";

const CALLERS: &str = "
apiVersion: heddle.dev/v1
kind: AuthorizationPolicy
metadata: { name: stateful, namespace: shop }
spec:
  targetRef: { kind: Service, name: stateful }
  action: ALLOW
  rules: [{ name: customer, from: [{ identities: [shop/customer] }] }]
";

/// A pod is reached by its own name, and by its address; what answers says which it was.
pub(crate) fn a_stateful_pod_is_reached_by_name(world: &mut World) {
    world.apply_meshed("shop", STATEFUL);
    wait("the service in the mesh", Duration::from_secs(20), || world.heddle(&["apply", "-f", "-"], CALLERS));
    world.kubectl("-n shop rollout status statefulset/stateful --timeout=90s");
    let call = |pod: &str, url: &str| {
        world.sh("shop", pod, "tools", &format!("curl -si --max-time 10 {url} || true")).expect("curl")
    };
    for pod in ["stateful-0", "stateful-1"] {
        let url = format!("http://{pod}.stateful:8080/charges/{pod}");
        // A charge that only this pod has.
        let body = r#"{"amount_cents":100,"card":"4242424242424242"}"#;
        let put = format!("curl -si --max-time 10 -X PUT -H 'content-type: application/json' -d '{body}' {url}");
        let said = world.sh("shop", "customer", "tools", &put).expect("curl");
        assert!(said.starts_with("HTTP/1.1 20"), "{said}");
    }
    for (asked, charge, status) in
        [("stateful-0", "stateful-0", 200), ("stateful-1", "stateful-1", 200), ("stateful-0", "stateful-1", 404)]
    {
        let said = call("customer", &format!("http://{asked}.stateful:8080/charges/{charge}"));
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{asked} {charge}: {said}");
    }
    let said = call("intern", "http://stateful-0.stateful:8080/healthz");
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
}

/// The kubelet has no identity: its probes hold all the same, while everybody else without one is refused.
pub(crate) fn probes_hold_under_default_deny(world: &mut World) {
    let pods = world.json("-n shop get pods -l app=stateful");
    for pod in pods["items"].as_array().expect("pods") {
        for container in pod["status"]["containerStatuses"].as_array().expect("statuses") {
            assert_eq!(container["restartCount"], 0, "{container}");
            assert_eq!(container["ready"], true, "{container}");
        }
    }
    // A probe that the app fails is not made good by the proxy.
    world.apply_meshed("shop", SICKLY);
    let event = wait("the failed probe", Duration::from_secs(60), || {
        let events = world.kubectl("-n shop get events --field-selector involvedObject.name=sickly,reason=Unhealthy");
        if events.contains("Readiness probe failed") { Ok(events) } else { Err(events) }
    });
    assert!(event.contains("statuscode: "), "{event}");
    let ready = world.kubectl("-n shop get pod sickly -o jsonpath={.status.containerStatuses[0].ready}");
    assert_eq!(ready, "false");
    world.kubectl("-n shop delete pod sickly --wait=false");
}

const SICKLY: &str = "
apiVersion: v1
kind: Pod
metadata: { name: sickly }
spec:
  serviceAccountName: stateful
  containers:
    - name: payments
      image: localhost/heddle-shop:0.1.0
      imagePullPolicy: IfNotPresent
      args: [payments]
      env:
        - { name: SHOP_LISTEN, value: '0.0.0.0:8080' }
        - { name: SHOP_DB, value: /data/payments.db }
      readinessProbe: { httpGet: { path: /nowhere, port: 8080 }, periodSeconds: 1 }
      volumeMounts: [{ name: data, mountPath: /data }]
  volumes: [{ name: data, emptyDir: {} }]
";
