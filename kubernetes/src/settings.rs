//! What a pod's annotations ask of its proxy. An unknown annotation of Heddle's, or a value that means nothing, is
//! refused: a slip must not leave a pod otherwise than was meant.

use std::{collections::BTreeMap, str::FromStr};

use ipnet::IpNet;
use serde_json::Value;

use crate::names::{HEALTH_PORT, INJECT, ORIGINAL, PREFIX, STATUS};

/// What a pod's annotations ask for; nothing of it: as it is for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Incoming connections to these ports reach the app as they are: no TLS, no policy.
    pub skip_inbound_ports: Ports,
    /// Outgoing connections to these ports do not pass the proxy.
    pub skip_outbound_ports: Ports,
    /// Nor do those to these address ranges.
    pub skip_outbound_subnets: Vec<IpNet>,
    /// Requests and limits of the proxy's container, by annotation.
    pub cpu_request: Option<String>,
    /// As above.
    pub cpu_limit: Option<String>,
    /// As above.
    pub memory_request: Option<String>,
    /// As above.
    pub memory_limit: Option<String>,
    /// Log filter of the proxy.
    pub log_level: Option<String>,
    /// After this from the begin of its shutdown the proxy ends, whatever is still open.
    pub drain_deadline: Option<String>,
    /// Whether the proxy logs each request; absent: as the mesh says.
    pub access_log: Option<bool>,
    /// Image of the proxy.
    pub image: Option<String>,
}

/// Ports and ranges of ports, as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<(u16, u16)>);

/// Whether pods get a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// They do.
    Enabled,
    /// They do not.
    Disabled,
}

/// An annotation or label that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} {name}: {problem}")]
pub struct InvalidSetting {
    place: &'static str,
    name: String,
    problem: String,
}

/// Reads one value into the settings; its error says what would be right.
type Read = fn(&str, &mut Settings) -> Result<(), &'static str>;

const PORTS: &str = "write ports and ranges of ports from 1 to 65535, such as 8080,9000-9010";
const QUANTITY: &str = "write a quantity as Kubernetes has them, such as 100m, 0.5, 64Mi or 1Gi";

/// Every annotation that a pod can have, with what reads it.
const KNOWN: [(&str, Read); 11] = [
    ("skip-inbound-ports", |text, to| text.parse().map(|ports| to.skip_inbound_ports = ports)),
    ("skip-outbound-ports", |text, to| text.parse().map(|ports| to.skip_outbound_ports = ports)),
    ("skip-outbound-subnets", |text, to| subnets(text).map(|subnets| to.skip_outbound_subnets = subnets)),
    ("proxy-cpu-request", |text, to| quantity(text).map(|text| to.cpu_request = Some(text))),
    ("proxy-cpu-limit", |text, to| quantity(text).map(|text| to.cpu_limit = Some(text))),
    ("proxy-memory-request", |text, to| quantity(text).map(|text| to.memory_request = Some(text))),
    ("proxy-memory-limit", |text, to| quantity(text).map(|text| to.memory_limit = Some(text))),
    ("log-level", |text, to| log_level(text).map(|text| to.log_level = Some(text))),
    ("drain-deadline", |text, to| duration(text).map(|text| to.drain_deadline = Some(text))),
    ("access-log", |text, to| on_or_off(text).map(|on| to.access_log = Some(on))),
    ("image", |text, to| image(text).map(|text| to.image = Some(text))),
];

impl Settings {
    /// Of the metadata of a pod, or of a pod template.
    ///
    /// # Errors
    /// The first annotation that cannot be followed.
    pub fn of(metadata: &Value) -> Result<Self, InvalidSetting> {
        inject(metadata)?;
        let mut settings = Self::default();
        for (place, name, value) in ours(metadata) {
            let fault = |problem: String| InvalidSetting { place, name: name.to_owned(), problem };
            if [INJECT, STATUS, ORIGINAL].contains(&name) {
                continue;
            }
            let known = KNOWN.iter().find(|(known, _)| name.strip_prefix(PREFIX) == Some(known));
            let Some((_, read)) = known.filter(|_| place == ANNOTATION) else {
                let names: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
                let names = names.join(", ");
                return Err(fault(match known {
                    Some(_) => "is read as an annotation only: write it below metadata.annotations".to_owned(),
                    None => format!("means nothing to Heddle; after {PREFIX} there is inject, {names}"),
                }));
            };
            let text = value.as_str().ok_or_else(|| fault("is no text: put the value in quotes".to_owned()))?;
            read(text.trim(), &mut settings).map_err(|right| fault(format!("{text:?} is not right: {right}")))?;
        }
        Ok(settings)
    }
}

/// What the metadata of a pod, template or namespace says about injection itself; `None`: nothing. An annotation wins
/// over a label.
///
/// # Errors
/// A value that means nothing.
pub fn inject(metadata: &Value) -> Result<Option<Inject>, InvalidSetting> {
    let mut said = None;
    for (place, name, value) in ours(metadata).filter(|(_, name, _)| *name == INJECT) {
        said = match value.as_str() {
            Some("enabled") => Some(Inject::Enabled),
            Some("disabled") => Some(Inject::Disabled),
            _ => {
                let problem = format!("{value} is not right: write enabled or disabled");
                return Err(InvalidSetting { place, name: name.to_owned(), problem });
            }
        };
    }
    Ok(said)
}

const LABEL: &str = "label";
const ANNOTATION: &str = "annotation";

/// Heddle's labels, then its annotations.
fn ours(metadata: &Value) -> impl Iterator<Item = (&'static str, &str, &Value)> {
    let of = |place, key: &str| {
        let map = metadata.get(key).and_then(Value::as_object);
        map.into_iter().flatten().map(move |(name, value)| (place, name.as_str(), value))
    };
    of(LABEL, "labels").chain(of(ANNOTATION, "annotations")).filter(|(_, name, _)| name.starts_with(PREFIX))
}

impl Ports {
    /// Whether the port is one of these.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// As `heddle-proxy capture` takes them, after those that it must have.
    pub(crate) fn after(&self, always: u16) -> String {
        let ranges = self.0.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        [always.to_string()].into_iter().chain(ranges).collect::<Vec<_>>().join(",")
    }
}

impl FromStr for Ports {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|port| digits && *port != 0)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            port(first.trim()).zip(port(last.trim())).filter(|(first, last)| first <= last)
        };
        let ranges = text.split(',').filter(|part| !part.trim().is_empty()).map(|part| range(part.trim()).ok_or(PORTS));
        Ok(Self(ranges.collect::<Result<_, _>>()?))
    }
}

fn subnets(text: &str) -> Result<Vec<IpNet>, &'static str> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| match part.parse::<std::net::IpAddr>() {
            Ok(ip) => Ok(IpNet::from(ip)),
            Err(_) => part.parse().map_err(|_| "write address ranges, such as 10.0.0.0/8,fd00::/8"),
        })
        .collect()
}

/// As `resource.Quantity` reads them, without signs: digits, perhaps a fraction, then a suffix or exponent.
fn quantity(text: &str) -> Result<String, &'static str> {
    const SUFFIXES: [&str; 16] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number_is_right = number.bytes().any(|byte| byte.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|rest| {
        let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
        !digits.is_empty() && digits.len() <= 2 && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    if number_is_right && (SUFFIXES.contains(&suffix) || exponent) { Ok(text.to_owned()) } else { Err(QUANTITY) }
}

fn log_level(text: &str) -> Result<String, &'static str> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let directive = |part: &str| {
        let (target, level) = part.rsplit_once('=').unwrap_or(("heddle", part));
        let module = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
        LEVELS.contains(&level) && !target.is_empty() && target.bytes().all(module)
    };
    if text.split(',').all(directive) {
        Ok(text.to_owned())
    } else {
        Err("write off, error, warn, info, debug or trace, or such as info,heddle_proxy=debug")
    }
}

/// As the proxy takes it.
fn duration(text: &str) -> Result<String, &'static str> {
    const RIGHT: &str = "write a duration from 1s to 1h, such as 30s or 2m";
    let parsed: heddle_api::resource::Duration = text.parse().map_err(|_| RIGHT)?;
    if (1..=3600).contains(&parsed.0.as_secs()) { Ok(text.to_owned()) } else { Err(RIGHT) }
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off"),
    }
}

fn image(text: &str) -> Result<String, &'static str> {
    let fits = !text.is_empty() && text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("write the name of an image, such as registry.example/heddle-proxy:1.0")
    }
}

/// The proxy's share of a node. Where the pod says anything of CPU or memory, only that holds: a default beside it
/// could contradict it.
pub(crate) fn resources(settings: &Settings) -> Value {
    let mut resources = BTreeMap::<&str, BTreeMap<&str, &str>>::new();
    let all = [
        ("cpu", &settings.cpu_request, &settings.cpu_limit, (Some("10m"), None)),
        ("memory", &settings.memory_request, &settings.memory_limit, (Some("32Mi"), Some("256Mi"))),
    ];
    for (what, request, limit, defaults) in all {
        let asked = (request.as_deref(), limit.as_deref());
        let (request, limit) = if asked == (None, None) { defaults } else { asked };
        for (of, quantity) in [("requests", request), ("limits", limit)] {
            if let Some(quantity) = quantity {
                resources.entry(of).or_default().insert(what, quantity);
            }
        }
    }
    serde_json::to_value(resources).unwrap_or_default()
}

/// Whether a probe of this port would meet the proxy.
pub(crate) fn is_captured(settings: &Settings, port: u16) -> bool {
    port != HEALTH_PORT && !settings.skip_inbound_ports.contains(port)
}

#[cfg(test)]
mod tests;
