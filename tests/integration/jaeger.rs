//! One order's whole trace, read back from a real Jaeger.

use std::{
    collections::{BTreeSet, HashMap},
    process::Command,
    time::Duration,
};

use heddle_tests::{
    eventually,
    mesh::{client_builder, reqwest_client},
    peer,
    ports::free_port,
    process::{Process, binary},
};
use serde_json::Value;

/// Of `tests/peers/jaeger.sh`.
const JAEGER: &str = "jaeger-1.76.0";
/// The services that an order passes; of payments there are two versions.
const SERVICES: [&str; 4] = ["storefront", "orders", "payments-v", "inventory"];

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_an_order_of_the_shop_is_whole() {
    let Some(jaeger) = peer::kept(JAEGER) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [otlp_grpc, otlp_http, query, query_grpc] = std::array::from_fn(|_| free_port());
    let mut command = Command::new(jaeger);
    for (setting, port) in [
        ("receivers.otlp.protocols.grpc.endpoint", otlp_grpc),
        ("receivers.otlp.protocols.http.endpoint", otlp_http),
        ("extensions.jaeger_query.http.endpoint", query),
        ("extensions.jaeger_query.grpc.endpoint", query_grpc),
    ] {
        command.args(["--set", &format!("{setting}=127.0.0.1:{port}")]);
    }
    // Its hundred lines of a start would hide what failed.
    command.args(["--set", "service.telemetry.logs.level=warn"]);
    let _jaeger = Process::start("jaeger", command, folder.path());
    let client = reqwest_client(client_builder());
    let get = async |path: &str| -> Result<Value, String> {
        let response = client.get(format!("http://127.0.0.1:{query}{path}")).send().await;
        response.map_err(|error| error.to_string())?.json().await.map_err(|error| error.to_string())
    };
    eventually("Jaeger", Duration::from_secs(30), || get("/api/services")).await;

    let shop = binary("shop");
    let bins = shop.parent().expect("a folder").to_path_buf();
    let otlp = format!("http://127.0.0.1:{otlp_grpc}");
    let output = tokio::task::spawn_blocking(move || {
        Command::new(shop).args(["demo", "--otlp", &otlp, "--bin-dir"]).arg(bins).output().expect("the demo runs")
    })
    .await
    .expect("no panic");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));

    // Spans come as each proxy sends them: a trace is whole once the last of them has.
    eventually("an order's whole trace", Duration::from_secs(30), || async {
        let found = get("/api/traces?service=storefront&limit=200&lookback=1h").await?;
        let traces = found["data"].as_array().cloned().unwrap_or_default();
        let count = traces.len();
        let whole =
            |trace: &Value| SERVICES.iter().all(|name| services_of(trace).iter().any(|seen| seen.starts_with(name)));
        // The demo kills a sidecar with -9, and with it the spans that it had not sent: not every trace is whole.
        let checked = traces.iter().filter(|trace| whole(trace)).map(check_tree);
        checked.reduce(|found, next| found.or(next)).unwrap_or_else(|| {
            let seen: BTreeSet<_> = traces.iter().map(services_of).collect();
            Err(format!("none of {count} traces passes all services; they pass {seen:?}"))
        })
    })
    .await;
}

/// One root, every other span below another one of the trace, and between two services a CLIENT span
/// of the caller's proxy above a SERVER span of the other's.
fn check_tree(trace: &Value) -> Result<(), String> {
    let spans = trace["spans"].as_array().ok_or("no spans")?;
    let by_id: HashMap<&str, &Value> = spans.iter().filter_map(|span| Some((span["spanID"].as_str()?, span))).collect();
    let parent = |span: &Value| {
        let reference = span["references"].as_array()?.iter().find(|reference| reference["refType"] == "CHILD_OF")?;
        reference["spanID"].as_str().map(str::to_owned)
    };
    let mut roots = 0;
    for span in spans {
        let Some(id) = parent(span) else {
            roots += 1;
            continue;
        };
        let above = by_id.get(id.as_str()).ok_or_else(|| format!("the parent of {span:#} is not in the trace"))?;
        let hop = (kind(above), kind(span));
        if service_of(trace, above) != service_of(trace, span) && hop != ("client".into(), "server".into()) {
            return Err(format!("{above:#}\n{span:#}"));
        }
    }
    // Storefront to orders, orders to inventory and to payments, at least.
    let clients = spans.iter().filter(|span| kind(span) == "client").count();
    if roots == 1 && clients >= 3 { Ok(()) } else { Err(format!("{roots} roots, {clients} CLIENT spans: {trace:#}")) }
}

fn kind(span: &Value) -> String {
    let tags = span["tags"].as_array().cloned().unwrap_or_default();
    let kind = tags.iter().find(|tag| tag["key"] == "span.kind");
    kind.and_then(|tag| tag["value"].as_str()).unwrap_or_default().to_owned()
}

fn service_of(trace: &Value, span: &Value) -> String {
    let process = span["processID"].as_str().unwrap_or_default();
    trace["processes"][process]["serviceName"].as_str().unwrap_or_default().to_owned()
}

fn services_of(trace: &Value) -> BTreeSet<String> {
    let spans = trace["spans"].as_array().cloned().unwrap_or_default();
    spans.iter().map(|span| service_of(trace, span)).collect()
}
