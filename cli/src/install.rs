//! `heddle install` and `heddle uninstall`: manifests for a Kubernetes cluster, made here, without any network; and what a cluster lacks for them.

mod check;

use std::path::{Path, PathBuf};

use clap::Args;
use heddle_kubernetes::install::{self, Values};
use serde_json::{Map, Value};

use crate::{
    error::{Error, exit},
    output::{self, Paint},
};

/// What to install.
#[derive(Clone, Debug, Args)]
pub(crate) struct InstallArgs {
    /// Namespace of the control plane [default: heddle-system].
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// File of values (YAML); `-` is standard input. May be repeated; the later one wins.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value, by its path: images.prefix=registry.example/heddle. May be repeated.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Show the values instead, all of them, as a file for --values.
    #[arg(long)]
    show_values: bool,
    /// Look instead at what the cluster of the current kubeconfig lacks for this.
    #[arg(long, conflicts_with = "show_values")]
    check: bool,
}

/// What was installed.
#[derive(Clone, Debug, Args)]
pub(crate) struct UninstallArgs {
    /// Namespace of the control plane [default: heddle-system].
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
}

/// Prints what to apply.
pub(crate) async fn install(args: &InstallArgs, paint: &Paint) -> Result<u8, Error> {
    let values = values(args)?;
    if args.check {
        return check::check(&values, paint).await;
    }
    let text = if args.show_values {
        yaml(&values)?
    } else {
        documents("to apply: heddle install | kubectl apply -f -", &install::manifests(&values))?
    };
    output::print(&text)?;
    Ok(exit::OK)
}

/// Prints what to remove.
pub(crate) fn uninstall(args: &UninstallArgs) -> Result<u8, Error> {
    let default = Values::default();
    let values = Values { namespace: args.namespace.clone().unwrap_or(default.namespace.clone()), ..default };
    let head = "to remove: heddle uninstall | kubectl delete --ignore-not-found -f - (the mesh's keys, objects and certificates go, too; \
                restart injected workloads afterwards, so that they lose their proxies)";
    output::print(&documents(head, &install::removals(&values))?)?;
    Ok(exit::OK)
}

/// Files in turn, then what was typed.
fn values(args: &InstallArgs) -> Result<Values, Error> {
    let mut tree = Value::Object(Map::new());
    for path in &args.files {
        let text = read(path)?;
        let below: Value = serde_yaml_ng::from_str(&text)
            .map_err(|error| Error::Usage(format!("{} holds no values: {error}", path.display())))?;
        match below {
            Value::Null => {}
            Value::Object(_) => lay_over(&mut tree, below),
            _ => return Err(Error::Usage(format!("{} holds no mapping of values", path.display()))),
        }
    }
    let defaults = serde_json::to_value(Values::default()).unwrap_or_default();
    for text in &args.set {
        let wrong = || Error::Usage(format!("--set {text}: write PATH=VALUE, such as images.tag=1.2.3"));
        let (path, value) = text.split_once('=').ok_or_else(wrong)?;
        // What is text by default is text: a version such as 1.10 is no number.
        let is_text =
            matches!(defaults.pointer(&format!("/{}", path.replace('.', "/"))), Some(Value::String(_) | Value::Null));
        let value =
            if is_text { value.into() } else { serde_yaml_ng::from_str::<Value>(value).map_err(|_| wrong())? };
        let nested =
            path.rsplit('.').fold(value, |value, key| Value::Object([(key.to_owned(), value)].into_iter().collect()));
        lay_over(&mut tree, nested);
    }
    if let Some(namespace) = &args.namespace {
        tree["namespace"] = namespace.as_str().into();
    }
    let values: Values =
        serde_path_to_error::deserialize(tree).map_err(|error| Error::Usage(format!("values: {error}")))?;
    values.check().map_err(|faults| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        Error::Usage(format!("values: {}", faults.join("; ")))
    })?;
    Ok(values)
}

fn read(path: &Path) -> Result<String, Error> {
    let text =
        if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    text.map_err(|source| Error::File { doing: "cannot read", path: path.to_owned(), source })
}

fn lay_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                lay_over(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

fn documents(head: &str, objects: &[Value]) -> Result<String, Error> {
    let mut text = format!("# heddle {}: {head}\n", env!("CARGO_PKG_VERSION"));
    for object in objects {
        text.push_str("---\n");
        text.push_str(&yaml(object)?);
    }
    Ok(text)
}

fn yaml<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_yaml_ng::to_string(value).map_err(|error| Error::Usage(format!("values cannot be shown: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> InstallArgs {
        use clap::Parser as _;
        match crate::args::Cli::parse_from(line.split_whitespace()).command {
            crate::args::Command::Install(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_typed_wins_over_files_and_these_over_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("values.yaml");
        std::fs::write(&file, "images: { prefix: r.example, tag: '1' }\nstorage: { class: fast }\n").unwrap();
        let file = file.display();
        let line = format!("heddle install -n mesh -f {file} --set images.tag=2 --set webhook.timeoutSeconds=5");
        let values = values(&parsed(&line)).unwrap();
        assert_eq!(values.image("heddle-proxy"), "r.example/heddle-proxy:2");
        assert_eq!((values.namespace.as_str(), values.webhook.timeout_seconds), ("mesh", 5));
        assert_eq!(values.storage.class.as_deref(), Some("fast"));
        assert_eq!(values.storage.size, Values::default().storage.size);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_path() {
        let says = |line: &str| values(&parsed(line)).unwrap_err().to_string();
        assert!(says("heddle install --set images.prefx=x").contains("prefx"));
        assert!(says("heddle install --set images=x").contains("images"));
        assert!(says("heddle install --set x").contains("PATH=VALUE"));
        assert!(says("heddle install --set webhook.failurePolicy=Never").contains("write Ignore or Fail"));
    }

    #[test]
    fn the_kustomize_base_is_what_install_prints() {
        let printed =
            documents("to apply: heddle install | kubectl apply -f -", &install::manifests(&Values::default()));
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kubernetes/kustomize/heddle.yaml");
        let kept = std::fs::read_to_string(&base).unwrap_or_default();
        assert!(
            printed.unwrap() == kept,
            "kubernetes/kustomize/heddle.yaml is not what `heddle install` prints: write it anew, \
             `cargo run -p heddle-cli -- install > kubernetes/kustomize/heddle.yaml`"
        );
    }
}
