use std::fs;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Parser;
use heddle_certs::Authority;
use serde_json::json;

use super::{
    error::Fault,
    file::{Flags, load},
    *,
};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Self { folder };
        files.write("join.json", &Self::join().to_string());
        files
    }

    fn join() -> serde_json::Value {
        let authority = Authority::create("heddle.local".parse().unwrap(), std::time::SystemTime::now()).unwrap();
        json!({
            "controlPlane": "127.0.0.1:9701",
            "trustDomain": "heddle.local",
            "identity": "spiffe://heddle.local/ns/shop/sa/orders",
            "trustAnchors": authority.bundle().to_pem(),
            "token": "hjt_1_secret",
        })
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// With the join file and these flags.
    fn load(&self, flags: &[&str]) -> Result<Config, Vec<Fault>> {
        let join = self.path("join.json");
        let all = ["heddle-proxy", "--join", &join].into_iter().chain(flags.iter().copied());
        load(&Flags::try_parse_from(all).unwrap()).map_err(|error| error.faults)
    }

    fn load_yaml(&self, yaml: &str) -> Result<Config, Vec<Fault>> {
        let file = self.write("proxy.yaml", yaml);
        self.load(&["--config", &file])
    }
}

fn service(config: &Config) -> (String, Vec<(Option<u16>, String)>) {
    let service = &config.services[0];
    (service.name.to_string(), service.ports.iter().map(|port| (port.port, port.app.to_string())).collect())
}

fn shown(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn captured_connections_have_a_listener_of_each_family_or_those_that_are_named() {
    let captured = |flags: &[&str]| shown(&Files::new().load(flags).unwrap().outbound.captured);
    assert_eq!(captured(&["--captured", "off"]), "");
    assert_eq!(captured(&["--captured", "4001"]), "127.0.0.1:4001 [::1]:4001");
    assert_eq!(captured(&["--captured", "127.0.0.1:0, [::1]:7"]), "127.0.0.1:0 [::1]:7");
    let written = Files::new().load_yaml("outbound: { captured: ['127.0.0.1:5', '[::1]:6'] }").unwrap();
    assert_eq!(shown(&written.outbound.captured), "127.0.0.1:5 [::1]:6");
}

#[test]
fn nothing_but_a_join_file_is_a_client_with_safe_defaults() {
    let config = Files::new().load(&[]).unwrap();
    assert!(config.services.is_empty());
    assert_eq!(shown(&config.inbound.listen), "0.0.0.0:15006 [::]:15006");
    assert_eq!(config.outbound.http_proxy.unwrap().to_string(), "127.0.0.1:15002");
    assert_eq!(shown(&config.outbound.captured), "127.0.0.1:15001 [::1]:15001");
    assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:15000");
    assert_eq!(config.join.proof, Some(Proof::JoinToken(Secret("hjt_1_secret".to_owned()))));
    assert!(!format!("{config:?}").contains("hjt_1_secret"));
}

#[test]
fn file_and_flags_say_the_same() {
    let files = Files::new();
    let by_file = files
        .load_yaml(
            "
services: [{ name: orders, ports: [{ port: 80, app: 8080 }, { app: 127.0.0.1:9090 }] }]
outbound: { httpProxy: off, upstreams: [{ name: Payments.shop, listen: 9001 }] }
labels: { app.kubernetes.io/name: orders }
zone: a
workers: 2
drain: { deadline: 10s }
limits: { maxConnections: 5 }
tracing: { endpoint: http://127.0.0.1:4317, samplingRatio: 0.5 }
",
        )
        .unwrap();
    let by_flags = files
        .load(&[
            "--service=orders.shop",
            "--port=80:8080",
            "--port=127.0.0.1:9090",
            "--http-proxy=off",
            "--upstream=Payments.shop=9001",
            "--label=app.kubernetes.io/name=orders",
            "--zone=a",
            "--workers=2",
            "--drain-deadline=10s",
            "--set=limits.maxConnections=5",
            "--tracing-endpoint=http://127.0.0.1:4317",
            "--sampling-ratio=0.5",
        ])
        .unwrap();
    assert_eq!(format!("{by_file:?}"), format!("{by_flags:?}"));
    let ports = vec![(Some(80), "127.0.0.1:8080".to_owned()), (None, "127.0.0.1:9090".to_owned())];
    assert_eq!(service(&by_file), ("shop/orders".to_owned(), ports));
    let upstream = &by_file.outbound.upstreams[0];
    assert_eq!((upstream.name.to_string(), upstream.typed.as_str()), ("payments.shop:80".to_owned(), "Payments.shop"));
}

#[test]
fn flags_win_over_the_file() {
    let files = Files::new();
    let file = files.write("proxy.yaml", "zone: a\nadmin: 127.0.0.1:1\nservices: [{ name: orders }]\nworkers: 3");
    let flags = ["--config", &file, "--zone=b", "--admin=off", "--port=8080", "--set", "workers=4"];
    let config = files.load(&flags).unwrap();
    assert_eq!((config.zone.as_str(), config.admin, config.workers.get()), ("b", None, 4));
    assert_eq!(service(&config).1, [(None, "127.0.0.1:8080".to_owned())]);
}

/// Settings, and where the fault is with what it says.
const FAULTS: &[(&str, &str, &str)] = &[
    ("zones: a", "zones", "is unknown; known here:"),
    ("outbound: { htpProxy: 1 }", "outbound.htpProxy", "known here: captured, httpProxy, upstreams"),
    ("outbound: 7", "outbound", "7 is no mapping"),
    ("[]", "--config", "holds no mapping"),
    ("services: orders", "services", "is no list"),
    ("services: [{}]", "services[0].name", "is missing: write the service's name"),
    ("services: [{ name: Orders }]", "services[0].name", "\"Orders\" is not right"),
    ("services: [{ name: a.b.c }]", "services[0].name", "is not right"),
    ("services: [{ name: orders.shop, namespace: store }]", "services[0].namespace", "the name says \"shop\""),
    ("services: [{ name: orders, ports: [{ port: 80 }] }]", "services[0].ports[0].app", "is missing"),
    ("services: [{ name: orders, ports: [{ app: 70000 }] }]", "services[0].ports[0].app", "70000 is not right"),
    ("services: [{ name: o, ports: [{ port: 0, app: 1 }] }]", "services[0].ports[0].port", "from 1 to 65535"),
    (
        "services: [{ name: o, ports: [{ port: 80, app: 1 }, { port: 80, app: 2 }] }]",
        "services[0].ports[1].port",
        "80 is there twice",
    ),
    ("workload: UPPER", "workload", "lower-case"),
    ("workload: orders.7f", "workload", "write one label, without a dot"),
    ("inbound: { listen: everywhere }", "inbound.listen", "write IP:PORT"),
    ("inbound: { advertise: 0.0.0.0:1 }", "inbound.advertise", "peers cannot dial"),
    ("admin: 0.0.0.0:15000", "admin", "can be reached from outside"),
    ("outbound: { httpProxy: 0.0.0.0:1 }", "outbound.httpProxy", "lets other hosts call as this workload"),
    ("outbound: { upstreams: [{ name: a, listen: 10.0.0.1:1 }] }", "outbound.upstreams[0].listen", "lets other hosts"),
    ("outbound: { upstreams: [{ name: 'a b', listen: 1 }] }", "outbound.upstreams[0].name", "write service"),
    ("outbound: { upstreams: [{ name: 'a:0', listen: 1 }] }", "outbound.upstreams[0].name", "write service"),
    ("health: 127.0.0.1:15000", "health", "127.0.0.1:15000 is taken by admin"),
    ("workers: 0", "workers", "from 1 to 256, or auto"),
    ("workers: 257", "workers", "from 1 to 256, or auto"),
    ("workers: [1]", "workers", "is no single value"),
    ("drain: { deadline: 30 }", "drain.deadline", "30 is not right: write a duration"),
    ("limits: { maxHeaderBytes: 1 }", "limits.maxHeaderBytes", "from 8192 to 1048576"),
    ("limits: { detectTimeout: 1h }", "limits.detectTimeout", "from 1ms to 10s"),
    ("tracing: { endpoint: collector }", "tracing.endpoint", "write a URL"),
    ("tracing: { protocol: udp }", "tracing.protocol", "write grpc or http"),
    ("tracing: { samplingRatio: 1.5 }", "tracing.samplingRatio", "from 0 to 1"),
    ("labels: { 'a b': c }", "labels", "\"a b\" is no key"),
    ("labels: { a: [1] }", "labels.a", "[1] is no text"),
    ("log: { format: xml }", "log.format", "write text or json"),
    ("discovery: { idle: 1ms }", "discovery.idle", "write a duration from 1s"),
    ("a: b: c", "--config", "is no YAML"),
    ("zone: a\nzone: b", "--config", "duplicate"),
];

#[test]
fn workers_may_be_as_many_as_the_cpus() {
    let cpus = std::thread::available_parallelism().unwrap();
    assert_eq!(Files::new().load_yaml("workers: auto").unwrap().workers, cpus);
    assert_eq!(Files::new().load_yaml("zone: a").unwrap().workers.get(), 1);
}

#[test]
fn every_fault_is_named_with_its_path() {
    let files = Files::new();
    for (yaml, path, says) in FAULTS {
        let faults = files.load_yaml(yaml).expect_err(yaml);
        assert_eq!(faults.len(), 1, "{yaml}: {faults:?}");
        assert_eq!(faults[0].path, *path, "{yaml}: {faults:?}");
        assert!(faults[0].message.contains(says), "{yaml}: {faults:?}");
    }
}

#[test]
fn all_faults_are_told_at_once_and_flags_by_their_names() {
    let files = Files::new();
    let file = files.write("proxy.yaml", "zones: 1\nworkers: many\nlimits: { maxStreams: none }");
    let faults =
        files.load(&["--config", &file, "--admin=9.9.9.9:1", "--upstream=x", "--set=a.b=1", "--port=1"]).unwrap_err();
    let text = ConfigErrorText(faults).to_string();
    for says in [
        "7 faults:",
        "\n  admin (--admin): ",
        "\n  workers: \"many\" is not right",
        "\n  limits.maxStreams: ",
        "\n  zones: is unknown",
        "\n  a: is unknown",
        "\n  --upstream: \"x\" is not right: write NAME[:PORT]=LOCAL_PORT",
        "services[0]",
    ] {
        assert!(text.contains(says), "{says:?} in {text}");
    }
}

/// Shows faults as a person would see them.
struct ConfigErrorText(Vec<Fault>);

impl fmt::Display for ConfigErrorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        error::ConfigError { faults: self.0.clone() }.fmt(f)
    }
}

#[test]
fn a_join_file_is_checked_like_the_settings() {
    let files = Files::new();
    let with = |key: &str, value: serde_json::Value| {
        let mut join = Files::join();
        join[key] = value;
        join.to_string()
    };
    for (text, says) in [
        ("nonsense".to_owned(), "is no JSON"),
        ("{}".to_owned(), "controlPlane: is missing"),
        (with("controlPlane", "nowhere".into()), "HOST:PORT"),
        (with("identity", "spiffe://other.local/ns/shop/sa/orders".into()), "is not of the trust domain heddle.local"),
        (with("identity", "spiffe://heddle.local/heddle/control-plane".into()), "/ns/<namespace>/sa/"),
        (with("trustAnchors", "PEM".into()), "trustAnchors: are not right"),
        (with("token", "".into()), "token"),
        (with("tokn", "".into()), "tokn: is unknown"),
    ] {
        files.write("join.json", &text);
        let faults = files.load(&[]).unwrap_err();
        let all = ConfigErrorText(faults).to_string();
        assert!(all.contains(says) && all.contains("join"), "{says}: {all}");
        assert!(!all.contains("hjt_1_secret"), "{all}");
    }
    files.write("join.json", &with("expires", "2027-01-01T00:00:00Z".into()));
    assert!(files.load(&[]).is_ok(), "an answer of the API may be kept whole");
    fs::remove_file(files.path("join.json")).unwrap();
    assert!(files.load(&[]).unwrap_err()[0].message.contains("cannot read"));
    let none = load(&Flags::try_parse_from(["heddle-proxy"]).unwrap()).unwrap_err();
    assert!(none.to_string().contains("heddle token create"), "{none}");
}

/// A token as the API server makes them, without its signature.
fn projected(subject: &str) -> String {
    let claims = json!({ "aud": ["heddle.dev"], "sub": subject, "exp": 1 }).to_string();
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

#[test]
fn in_kubernetes_the_token_of_the_pod_says_who_to_be() {
    let files = Files::new();
    let token = files.write("token", &format!("{}\n", projected("system:serviceaccount:shop:orders")));
    let pem = Files::join()["trustAnchors"].as_str().unwrap().to_owned();
    let flags = |more: &[&str]| {
        let all =
            ["heddle-proxy", "--control-plane", "heddle-control-plane.heddle-system.svc:9701", "--trust-roots", &pem];
        let all = all.into_iter().chain(more.iter().copied());
        load(&Flags::try_parse_from(all).unwrap()).map_err(|error| error.faults)
    };
    let config = flags(&["--service-account-token", &token, "--trust-domain", "mesh.example"]).unwrap();
    assert_eq!(config.join.identity.to_string(), "spiffe://mesh.example/ns/shop/sa/orders");
    assert_eq!(config.join.control_plane, "heddle-control-plane.heddle-system.svc:9701");
    assert_eq!(config.join.proof, Some(Proof::ServiceAccountToken(token.clone().into())));
    let default = flags(&["--service-account-token", &token]).unwrap();
    assert_eq!(default.join.identity.trust_domain().as_str(), "heddle.local");

    let says = |more: &[&str], expected: &str| {
        let all = ConfigErrorText(flags(more).unwrap_err()).to_string();
        assert!(all.contains(expected), "{more:?}: {all}");
    };
    says(&[], "kubernetes.serviceAccountToken: is missing");
    says(&["--service-account-token", "/nowhere"], "cannot read /nowhere");
    says(&["--service-account-token", &token, "--join", "x"], "write one of them");
    says(&["--service-account-token", &token, "--trust-domain", "A"], "kubernetes.trustDomain");
    for wrong in ["x", "a.b.c", &projected("system:node:a"), &projected("system:serviceaccount:shop")] {
        let file = files.write("wrong", wrong);
        says(&["--service-account-token", &file], "this is no token of a service account");
    }
}

#[test]
fn names_that_are_dialled() {
    for (text, name) in [
        ("orders", "orders:80"),
        ("Orders.Shop.:8080", "orders.shop:8080"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("[::1]:9", "[::1]:9"),
        ("[FE80::1]", "[fe80::1]:80"),
        ("[0:0::1]:9", "[::1]:9"),
        ("[::FFFF:10.1.2.3]:8080", "10.1.2.3:8080"),
        ("[::ffff:a01:203]", "10.1.2.3:80"),
        ("a_b.c", "a_b.c:80"),
    ] {
        assert_eq!(text.parse::<DialName>().unwrap().to_string(), name);
    }
    for bad in ["", ":80", "a:", "a:b", "a:+1", "a:0", "a:65536", "a b", "a..b", "[::1", "[x]:1", "::1", "a/b", "*.a"] {
        assert!(bad.parse::<DialName>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_file_without_an_end_is_not_read_to_it() {
    let flags = Flags { config: Some("/dev/zero".into()), ..Flags::default() };
    let error = load(&flags).unwrap_err().to_string();
    assert!(error.contains("/dev/zero has more than 1048576 bytes"), "{error}");
}
