//! What the sidecar is told, and what the command is told about it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{RunArgs, RunError, sidecar::Addresses};
use crate::{
    commands::Session,
    context::write_private,
    error::Error,
    kind::Kind,
    object::Object,
    output::{self, Format},
    token,
};

/// How long the join token of a run can be used: the sidecar uses it at once.
const TOKEN_LIFETIME: &str = "10m";

/// How a sidecar is started. Its temporary files live as long as this.
pub(super) struct Plan {
    /// Arguments of `heddle-proxy`.
    pub(super) arguments: Vec<OsString>,
    /// Its state directory.
    pub(super) state_dir: PathBuf,
    /// Where its log goes; nothing is standard error.
    pub(super) log: Option<PathBuf>,
    /// Removed at the end.
    _folder: TempDir,
}

/// `[SERVICE_PORT:]APP_PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortMapping {
    service: Option<u16>,
    app: u16,
}

impl FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, app) = match text.split_once(':') {
            Some((service, app)) => (Some(port(service)?), port(app)?),
            None => (None, port(text)?),
        };
        Ok(Self { service, app })
    }
}

/// `NAME[:PORT]=LOCAL_PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UpstreamMapping {
    name: String,
    local: u16,
}

impl FromStr for UpstreamMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, local) = text.split_once('=').ok_or("it is written NAME[:PORT]=LOCAL_PORT")?;
        if let Some((_, remote)) = name.split_once(':') {
            port(remote)?;
        }
        if name.is_empty() || name.starts_with(':') || name.contains(char::is_whitespace) {
            return Err("it begins with the name of a service".to_owned());
        }
        // Port 0 is a free one; then only the sidecar knows which.
        let local = local.parse().map_err(|_| format!("{local:?} is no port"))?;
        Ok(Self { name: name.to_owned(), local })
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{text:?} is no port (1 to 65535)"))
}

/// Asks the control plane what there is to know, unless a join file says enough.
pub(super) async fn plan(session: impl Fn() -> Result<Session, Error>, args: &RunArgs) -> Result<Plan, Error> {
    let folder = tempfile::Builder::new().prefix("heddle-run-").tempdir().map_err(RunError::Prepare)?;
    let (service, ports, join) = match &args.join {
        Some(join) => (args.service.clone(), args.ports.clone(), join.clone()),
        None => {
            let session = session()?;
            let asked = ask(&session, args).await?;
            let join = folder.path().join("join.json");
            write_private(&join, &output::render(&asked.join, Format::Json)?)?;
            (asked.service, asked.ports, join)
        }
    };
    let state_dir = args.state_dir.clone().unwrap_or_else(|| folder.path().join("state"));
    let log = match &args.proxy_log {
        Some(path) if path.as_os_str() == "-" => None,
        Some(path) => Some(path.clone()),
        None if args.command.is_empty() => None,
        None => Some(folder.path().join("proxy.log")),
    };
    let arguments = arguments(args, service.as_deref(), &ports, &join, &state_dir);
    Ok(Plan { arguments, state_dir, log, _folder: folder })
}

/// What the control plane said.
struct Asked {
    service: Option<String>,
    ports: Vec<PortMapping>,
    join: Value,
}

async fn ask(session: &Session, args: &RunArgs) -> Result<Asked, Error> {
    let mut service = None;
    let mut ports = Vec::new();
    let mut account = match &args.account {
        Some(account) => Some(token::qualified(session, account, &args.namespace)?),
        None => None,
    };
    if let Some(typed) = &args.service {
        let (name, namespace) = token::qualified(session, typed, &args.namespace)?;
        let kind = Kind::typed("service")?;
        let Some(object) = session.client.find(kind, &namespace, &name).await? else {
            return Err(Error::NotFound(format!(
                "there is no service {namespace}/{name}; `heddle apply` it first (`heddle get services -A` lists them)"
            )));
        };
        ports = complete_ports(&args.ports, &object)?;
        let first = || (accounts_of(&object)[0].to_owned(), namespace.clone());
        let account = account.get_or_insert_with(first);
        if account.1 != namespace {
            let text = format!("a service account of {} cannot serve a service of {namespace}", account.1);
            return Err(Error::Usage(text));
        }
        may_serve(&account.0, &object).map_err(Error::Usage)?;
        service = Some(format!("{name}.{namespace}"));
    }
    let Some((account, namespace)) = account else {
        return Err(Error::Usage("without --join, --service or --account says who the command is".to_owned()));
    };
    let join = token::create_join(&session.client, &namespace, &account, TOKEN_LIFETIME, 1).await?;
    Ok(Asked { service, ports, join })
}

/// The service accounts that may serve a service; at least one.
fn accounts_of(service: &Object) -> Vec<&str> {
    let listed: Vec<&str> = service.list("/spec/serviceAccounts").iter().filter_map(Value::as_str).collect();
    if listed.is_empty() { vec![service.name()] } else { listed }
}

/// Whether a service account is one of those that may serve a service.
fn may_serve(account: &str, service: &Object) -> Result<(), String> {
    let serving = accounts_of(service);
    if serving.contains(&account) {
        return Ok(());
    }
    let who = service.reference();
    Err(format!("service account {account} may not serve {who}: its serviceAccounts are {}", serving.join(", ")))
}

/// Finds the service port of each app port; with none typed, every port of the service.
fn complete_ports(typed: &[PortMapping], service: &Object) -> Result<Vec<PortMapping>, RunError> {
    let number = |port: &Value, name: &str| port.get(name)?.as_u64()?.try_into().ok();
    let known: Vec<(u16, u16)> = service
        .list("/spec/ports")
        .iter()
        .filter_map(|one| {
            let port = number(one, "port")?;
            Some((port, number(one, "targetPort").unwrap_or(port)))
        })
        .collect();
    let shown = || {
        let ports: Vec<_> = known.iter().map(|(port, target)| format!("{port} (app port {target})")).collect();
        format!("{} has {}", service.reference(), ports.join(", "))
    };
    if typed.is_empty() {
        return Ok(known.iter().map(|&(port, app)| PortMapping { service: Some(port), app }).collect());
    }
    typed
        .iter()
        .map(|mapping| {
            let service_port = match mapping.service {
                Some(port) if known.iter().any(|(known, _)| *known == port) => port,
                Some(port) => return Err(RunError::Port(format!("there is no service port {port}: {}", shown()))),
                None => {
                    let fitting: Vec<u16> =
                        known.iter().filter(|(_, target)| *target == mapping.app).map(|(port, _)| *port).collect();
                    match (fitting.as_slice(), known.as_slice()) {
                        ([port], _) => *port,
                        (_, [(port, _)]) => *port,
                        _ => {
                            let text = format!("which service port leads to app port {}? {}", mapping.app, shown());
                            return Err(RunError::Port(text));
                        }
                    }
                }
            };
            Ok(PortMapping { service: Some(service_port), app: mapping.app })
        })
        .collect()
}

/// The sidecar's arguments. What may be secret is in files.
fn arguments(
    args: &RunArgs,
    service: Option<&str>,
    ports: &[PortMapping],
    join: &Path,
    state_dir: &Path,
) -> Vec<OsString> {
    let mut list: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| list.extend([name.into(), value]);
    flag("--join", join.into());
    flag("--state-dir", state_dir.into());
    flag("--inbound", args.inbound.to_string().into());
    flag("--captured", "off".into());
    flag("--http-proxy", format!("127.0.0.1:{}", args.http_proxy.unwrap_or(0)).into());
    flag("--admin", "127.0.0.1:0".into());
    flag("--health", "127.0.0.1:0".into());
    if let Some(service) = service {
        flag("--service", service.into());
    }
    for port in ports {
        let text = match port.service {
            Some(service) => format!("{service}:127.0.0.1:{}", port.app),
            None => port.app.to_string(),
        };
        flag("--port", text.into());
    }
    for upstream in &args.upstreams {
        flag("--upstream", format!("{}={}", upstream.name, upstream.local).into());
    }
    for (name, value) in [("--workload", &args.workload), ("--zone", &args.zone), ("--advertise", &args.advertise)] {
        if let Some(value) = value {
            flag(name, value.into());
        }
    }
    for label in &args.labels {
        flag("--label", label.into());
    }
    for setting in &args.settings {
        flag("--set", setting.into());
    }
    list
}

/// The variables that lead the command's calls through the sidecar. Exporters of telemetry are
/// spared: what they send is no call between services.
pub(super) fn environment(
    addresses: &Addresses,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, String)> {
    let proxy = addresses.http_proxy_url();
    // What was exempt from another proxy is not exempt from the mesh.
    let mut exempt = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    for name in [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    ] {
        let host = variable(name).and_then(|url| reqwest::Url::parse(&url).ok()?.host_str().map(str::to_owned));
        exempt.extend(host.filter(|host| !exempt.contains(host)));
    }
    let exempt = exempt.join(",");
    vec![
        ("http_proxy", proxy.clone()),
        ("HTTP_PROXY", proxy),
        ("no_proxy", exempt.clone()),
        ("NO_PROXY", exempt),
        ("NODE_USE_ENV_PROXY", "1".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    fn mapping(text: &str) -> PortMapping {
        text.parse().unwrap()
    }

    #[test]
    fn port_and_upstream_mappings() {
        assert_eq!(mapping("80:8080"), PortMapping { service: Some(80), app: 8080 });
        assert_eq!(mapping("8080"), PortMapping { service: None, app: 8080 });
        for bad in ["", "0", "80:", ":80", "80:0", "a", "70000", "1:2:3"] {
            assert!(bad.parse::<PortMapping>().is_err(), "{bad}");
        }
        for good in ["payments=9001", "payments.shop:80=9001", "payments=0"] {
            assert!(good.parse::<UpstreamMapping>().is_ok(), "{good}");
        }
        for bad in ["payments", "=1", "a=", "a=b", "a:0=1", "a:x=1", "a b=1", ":80=1"] {
            assert!(bad.parse::<UpstreamMapping>().is_err(), "{bad}");
        }
    }

    fn service(ports: Value) -> Object {
        Object(
            json!({"kind": "Service", "metadata": {"name": "orders", "namespace": "shop"}, "spec": {"ports": ports}}),
        )
    }

    #[test]
    fn service_ports_are_found_by_target_port_or_where_there_is_only_one() {
        let two = service(json!([{"port": 80, "targetPort": 8080}, {"port": 9090}]));
        let complete = |typed: &[&str], service: &Object| {
            let typed: Vec<_> = typed.iter().map(|text| mapping(text)).collect();
            complete_ports(&typed, service).map(|ports| {
                ports.iter().map(|port| format!("{}:{}", port.service.unwrap(), port.app)).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(complete(&["8080", "9090"], &two).unwrap(), "80:8080 9090:9090");
        assert_eq!(complete(&["80:3000"], &two).unwrap(), "80:3000");
        assert_eq!(complete(&[], &two).unwrap(), "80:8080 9090:9090");
        assert_eq!(complete(&["3000"], &service(json!([{"port": 80}]))).unwrap(), "80:3000");
        let error = complete(&["3000"], &two).unwrap_err();
        assert_eq!(
            error.to_string(),
            "which service port leads to app port 3000? Service shop/orders has 80 (app port 8080), 9090 (app port 9090)"
        );
        assert!(complete(&["81:3000"], &two).is_err());
    }

    #[test]
    fn the_first_listed_account_serves() {
        let mut object = service(json!([]));
        assert_eq!(accounts_of(&object), ["orders"]);
        object.0["spec"]["serviceAccounts"] = json!(["a", "b"]);
        assert_eq!(accounts_of(&object), ["a", "b"]);
        assert_eq!(may_serve("b", &object), Ok(()));
        assert_eq!(
            may_serve("orders", &object).unwrap_err(),
            "service account orders may not serve Service shop/orders: its serviceAccounts are a, b"
        );
    }

    fn run_args(line: &str) -> RunArgs {
        match crate::args::Cli::parse_from(line.split_whitespace()).command {
            crate::args::Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_sidecar_listens_on_free_loopback_ports() {
        let args = run_args(
            "heddle run --service orders --upstream db.shop:5432=5000 --label version=v2 --set workers=2 -- app",
        );
        let list = arguments(
            &args,
            Some("orders.shop"),
            &[mapping("80:8080")],
            Path::new("/t/join.json"),
            Path::new("/t/state"),
        );
        let text: Vec<_> = list.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        assert_eq!(
            text.join(" "),
            "--join /t/join.json --state-dir /t/state --inbound 127.0.0.1:0 --captured off --http-proxy 127.0.0.1:0 \
             --admin 127.0.0.1:0 --health 127.0.0.1:0 --service orders.shop --port 80:127.0.0.1:8080 \
             --upstream db.shop:5432=5000 --label version=v2 --set workers=2"
        );
    }

    #[test]
    fn the_command_finds_the_sidecar_and_its_exporters_avoid_it() {
        let addresses: Addresses = serde_json::from_value(json!({
            "httpProxy": "127.0.0.1:4000", "health": "127.0.0.1:4001", "admin": "127.0.0.1:4002"
        }))
        .unwrap();
        let environment = environment(&addresses, |name| {
            (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://collector.example:4317".to_owned())
        });
        let value = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        assert_eq!(value("http_proxy"), Some("http://127.0.0.1:4000"));
        assert_eq!(value("HTTP_PROXY"), value("http_proxy"));
        assert_eq!(value("NO_PROXY"), Some("localhost,127.0.0.1,::1,collector.example"));
        assert_eq!(value("NODE_USE_ENV_PROXY"), Some("1"));
    }
}
