use serde_json::json;

use super::*;

fn of(name: &str, value: Value) -> Result<Settings, String> {
    Settings::of(&json!({ "annotations": { name: value } })).map_err(|error| error.to_string())
}

#[test]
fn every_annotation_is_read() {
    let metadata = json!({ "annotations": {
        "other.example/x": "y",
        "heddle.dev/inject": "enabled",
        "heddle.dev/skip-inbound-ports": "22, 9000-9010",
        "heddle.dev/skip-outbound-ports": "25",
        "heddle.dev/skip-outbound-subnets": "10.0.0.0/8, fd00::/8,192.0.2.1",
        "heddle.dev/proxy-cpu-request": "100m",
        "heddle.dev/proxy-cpu-limit": "1.5",
        "heddle.dev/proxy-memory-request": "64Mi",
        "heddle.dev/proxy-memory-limit": "1e9",
        "heddle.dev/log-level": "info,heddle_proxy::inbound=debug",
        "heddle.dev/drain-deadline": "2m",
        "heddle.dev/access-log": "on",
        "heddle.dev/image": "registry.example/heddle-proxy:1",
    } });
    let settings = Settings::of(&metadata).unwrap();
    assert!(settings.skip_inbound_ports.contains(9005) && !settings.skip_inbound_ports.contains(9011));
    assert_eq!(settings.skip_inbound_ports.after(15020), "15020,22,9000-9010");
    assert_eq!(settings.skip_outbound_ports.after(53), "53,25");
    let subnets: Vec<_> = settings.skip_outbound_subnets.iter().map(ToString::to_string).collect();
    assert_eq!(subnets, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
    assert_eq!(settings.access_log, Some(true));
    assert_eq!(
        resources(&settings),
        json!({ "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "cpu": "1.5", "memory": "1e9" } })
    );
    assert_eq!(
        resources(&Settings::default()),
        json!({ "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } })
    );
    let more = of("heddle.dev/proxy-memory-request", json!("512Mi")).unwrap();
    assert_eq!(resources(&more), json!({ "requests": { "cpu": "10m", "memory": "512Mi" } }));
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    for (name, value, says) in [
        ("skip-inbound-port", json!("22"), "annotation heddle.dev/skip-inbound-port: means nothing to Heddle"),
        ("skip-inbound-ports", json!("0"), "\"0\" is not right: write ports"),
        ("skip-inbound-ports", json!("9-8"), "write ports"),
        ("skip-outbound-ports", json!("+5"), "write ports"),
        ("skip-outbound-ports", json!(25), "put the value in quotes"),
        ("skip-outbound-subnets", json!("10.0.0.0/33"), "write address ranges"),
        ("proxy-cpu-request", json!("-1"), "write a quantity"),
        ("proxy-cpu-request", json!("."), "write a quantity"),
        ("proxy-memory-limit", json!("64MB"), "write a quantity"),
        ("log-level", json!("loud"), "write off, error"),
        ("log-level", json!("=info"), "write off, error"),
        ("drain-deadline", json!("30"), "write a duration"),
        ("drain-deadline", json!("2h"), "write a duration"),
        ("access-log", json!("true"), "write on or off"),
        ("image", json!("two words"), "write the name of an image"),
        ("inject", json!("yes"), "write enabled or disabled"),
    ] {
        let said = of(&format!("heddle.dev/{name}"), value.clone()).unwrap_err();
        assert!(said.contains(&format!("heddle.dev/{name}: ")) && said.contains(says), "{name}={value}: {said}");
    }
    let label = Settings::of(&json!({ "labels": { "heddle.dev/log-level": "info" } })).unwrap_err();
    assert!(label.to_string().contains("label heddle.dev/log-level: is read as an annotation only"), "{label}");
}

#[test]
fn an_annotation_wins_over_a_label() {
    let both = json!({
        "labels": { "heddle.dev/inject": "enabled" }, "annotations": { "heddle.dev/inject": "disabled" },
    });
    assert_eq!(inject(&both).unwrap(), Some(Inject::Disabled));
    assert_eq!(inject(&json!({ "labels": { "heddle.dev/inject": "enabled" } })).unwrap(), Some(Inject::Enabled));
    assert_eq!(inject(&Value::Null).unwrap(), None);
}
