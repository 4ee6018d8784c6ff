//! `heddle install --check`: what the cluster of the current kubeconfig lacks for an installation.

use heddle_kubernetes::{
    install::{self, Values},
    names::CONTROL_PLANE,
};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{Api, Client, api::PostParams};
use serde_json::Value;

use crate::{
    error::{Error, exit},
    output::{self, Paint},
};

/// The first version with native sidecars that are there unless switched off.
const OLDEST: (u32, u32) = (1, 29);
/// Marks the StorageClass that is used where none is named.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// What was found out; absent: it could not be.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// Major and minor version of the API server.
    version: Option<(u32, u32)>,
    /// What of the manifests this user may not create.
    forbidden: Vec<String>,
    /// Labels and readiness of each node.
    nodes: Option<Vec<(std::collections::BTreeMap<String, String>, bool)>>,
    /// Each StorageClass, and whether it is the default.
    classes: Option<Vec<(String, bool)>>,
    /// Volumes without a class that nobody has claimed.
    free_volumes: usize,
    /// Whether the control plane has its volume already.
    claimed: bool,
    /// Namespace of an installation that is there.
    installed_in: Option<String>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    good: bool,
    what: String,
    /// What to do about it.
    advice: String,
}

/// Shows what there is and what is missing.
pub(super) async fn check(values: &Values, paint: &Paint) -> Result<u8, Error> {
    let config = kube::Config::infer().await.map_err(|error| Error::Usage(format!("no cluster is known: {error}")))?;
    let address = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| Error::Usage(format!("no cluster is known: {error}")))?;
    let facts = gather(&client, values, &address).await?;
    let findings = judge(&facts, values);
    let mut text = String::new();
    for Finding { good, what, advice } in &findings {
        let mark = if *good { paint.good("ok") } else { paint.bad("lacking") };
        text.push_str(&format!("{mark}  {what}\n"));
        if !good {
            text.push_str(&format!("    {advice}\n"));
        }
    }
    output::print(&text)?;
    Ok(if findings.iter().all(|finding| finding.good) { exit::OK } else { exit::REFUSED })
}

async fn gather(client: &Client, values: &Values, address: &str) -> Result<Facts, Error> {
    let version = client.apiserver_version().await.map_err(|error| Error::Unreachable {
        address: address.to_owned(),
        reason: error.to_string(),
        hint: "is this the cluster that `kubectl config current-context` should name?".to_owned(),
    })?;
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let mut facts = Facts { version: number(&version.major).zip(number(&version.minor)), ..Facts::default() };
    for object in install::manifests(values) {
        if let Some(what) = forbidden(client, &object).await {
            facts.forbidden.push(what);
        }
    }
    if let Ok(nodes) = Api::<Node>::all(client.clone()).list(&Default::default()).await {
        let ready = |node: &Node| {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        facts.nodes =
            Some(nodes.iter().map(|node| (node.metadata.labels.clone().unwrap_or_default(), ready(node))).collect());
    }
    if let Ok(classes) = Api::<StorageClass>::all(client.clone()).list(&Default::default()).await {
        let default = |class: &StorageClass| {
            class.metadata.annotations.iter().flatten().any(|(key, value)| key == DEFAULT_CLASS && value == "true")
        };
        let named = |class: &StorageClass| (class.metadata.name.clone().unwrap_or_default(), default(class));
        facts.classes = Some(classes.iter().map(named).collect());
    }
    if let Ok(volumes) = Api::<PersistentVolume>::all(client.clone()).list(&Default::default()).await {
        let free = |volume: &&PersistentVolume| {
            let classless = volume.spec.as_ref().is_some_and(|spec| {
                spec.storage_class_name.as_deref().unwrap_or_default().is_empty() && spec.claim_ref.is_none()
            });
            classless && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
        };
        facts.free_volumes = volumes.iter().filter(free).count();
    }
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), &values.namespace);
    let claim = claims.get_opt(CONTROL_PLANE).await.ok().flatten();
    facts.claimed = claim.is_some_and(|claim| claim.spec.is_some_and(|spec| spec.volume_name.is_some()));
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
    if let Ok(Some(webhook)) = webhooks.get_opt(heddle_kubernetes::names::WEBHOOK_CONFIGURATION).await {
        let service = webhook.webhooks.iter().flatten().find_map(|webhook| webhook.client_config.service.as_ref());
        facts.installed_in = service.map(|service| service.namespace.clone());
    }
    Ok(facts)
}

/// What this user may not create.
async fn forbidden(client: &Client, object: &Value) -> Option<String> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api, kind) = (text("/apiVersion"), text("/kind"));
    let group = api.split_once('/').map_or_else(String::new, |(group, _)| group.to_owned());
    // Of the kinds that are installed, each plural is regular.
    let resource = format!("{}s", kind.to_ascii_lowercase());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group),
                resource: Some(resource.clone()),
                verb: Some("create".to_owned()),
                namespace: Some(text("/metadata/namespace")),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.ok()?;
    (!answer.status.is_some_and(|status| status.allowed)).then_some(resource)
}

/// What the facts mean.
fn judge(facts: &Facts, values: &Values) -> Vec<Finding> {
    let finding = |good: bool, what: String, advice: &str| Finding { good, what, advice: advice.to_owned() };
    let mut findings = Vec::new();
    findings.push(match facts.version {
        Some(version) => finding(
            version >= OLDEST,
            format!("Kubernetes {}.{}", version.0, version.1),
            "Heddle's proxies are native sidecars: use Kubernetes 1.29 or newer",
        ),
        None => {
            finding(false, "the version of Kubernetes cannot be told".to_owned(), "is this a Kubernetes API server?")
        }
    });
    findings.push(if facts.forbidden.is_empty() {
        finding(true, "you may create everything that is installed".to_owned(), "")
    } else {
        finding(
            false,
            format!("you may not create {}", facts.forbidden.join(", ")),
            "have someone with the role cluster-admin apply the manifests",
        )
    });
    if let Some(nodes) = &facts.nodes {
        let fits = |(labels, ready): &&(std::collections::BTreeMap<String, String>, bool)| {
            let wanted = values.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
            let linux = labels.get("kubernetes.io/os").is_none_or(|os| os == "linux");
            *ready && linux && wanted
        };
        let count = nodes.iter().filter(fits).count();
        findings.push(finding(
            count > 0,
            format!("{count} of {} nodes can run the control plane", nodes.len()),
            "it needs a Linux node that is ready and has the labels of nodeSelector",
        ));
    }
    if let Some(classes) = &facts.classes {
        findings.push(match &values.storage.class {
            Some(class) => finding(
                classes.iter().any(|(name, _)| name == class),
                format!("storage class {class}"),
                "there is no such class: name another with --set storage.class=NAME",
            ),
            None => finding(
                facts.free_volumes > 0 || classes.iter().any(|(_, default)| *default) || facts.claimed,
                "a volume for the control plane".to_owned(),
                "there is neither a default storage class nor a free volume without a class: name a class with --set \
                 storage.class=NAME",
            ),
        });
    }
    if let Some(namespace) = &facts.installed_in {
        findings.push(finding(
            *namespace == values.namespace,
            format!("Heddle is installed in {namespace}"),
            "there can be one in a cluster: use --namespace with its name, or remove it with `heddle uninstall`",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            version: Some((1, 36)),
            forbidden: Vec::new(),
            nodes: Some(vec![([("kubernetes.io/os".to_owned(), "linux".to_owned())].into(), true)]),
            classes: Some(vec![("standard".to_owned(), true)]),
            free_volumes: 0,
            claimed: false,
            installed_in: None,
        }
    }

    fn lacking(facts: &Facts, values: &Values) -> Vec<String> {
        judge(facts, values).into_iter().filter(|finding| !finding.good).map(|finding| finding.what).collect()
    }

    #[test]
    fn what_is_there_is_good() {
        assert_eq!(lacking(&facts(), &Values::default()), [""; 0]);
        let again = Facts { installed_in: Some("heddle-system".to_owned()), ..facts() };
        assert_eq!(lacking(&again, &Values::default()), [""; 0]);
        let bound = Facts { classes: Some(Vec::new()), claimed: true, ..facts() };
        assert_eq!(lacking(&bound, &Values::default()), [""; 0]);
        let by_hand = Facts { classes: Some(Vec::new()), free_volumes: 1, ..facts() };
        assert_eq!(lacking(&by_hand, &Values::default()), [""; 0]);
    }

    #[test]
    fn each_lack_is_told() {
        let default = Values::default();
        assert_eq!(lacking(&Facts { version: Some((1, 28)), ..facts() }, &default), ["Kubernetes 1.28"]);
        let forbidden = Facts { forbidden: vec!["clusterroles".to_owned()], ..facts() };
        assert_eq!(lacking(&forbidden, &default), ["you may not create clusterroles"]);
        let windows = Facts {
            nodes: Some(vec![([("kubernetes.io/os".to_owned(), "windows".to_owned())].into(), true)]),
            ..facts()
        };
        assert_eq!(lacking(&windows, &default), ["0 of 1 nodes can run the control plane"]);
        let no_class = Facts { classes: Some(vec![("slow".to_owned(), false)]), ..facts() };
        assert_eq!(lacking(&no_class, &default), ["a volume for the control plane"]);
        let mut named = Values::default();
        named.storage.class = Some("fast".to_owned());
        assert_eq!(lacking(&no_class, &named), ["storage class fast"]);
        let elsewhere = Facts { installed_in: Some("mesh".to_owned()), ..facts() };
        assert_eq!(lacking(&elsewhere, &default), ["Heddle is installed in mesh"]);
    }
}
