//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use heddle_api::resource::Duration;

use crate::{
    context::Overrides,
    error::EXIT_CODES,
    install::{InstallArgs, UninstallArgs},
    output::{Color, Format},
    run::RunArgs,
};

/// heddle: the command line of the Heddle service mesh.
#[derive(Debug, Parser)]
#[command(name = "heddle", version, after_help = EXIT_CODES, disable_help_subcommand = true, infer_long_args = false)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// For every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For every command")]
pub(crate) struct Global {
    /// Context to use instead of the file's current one.
    #[arg(long, global = true, value_name = "NAME", env = "HEDDLE_CONTEXT")]
    context: Option<String>,
    /// Context file; default ~/.config/heddle/config.yaml. HEDDLE_ADDRESS, HEDDLE_CA (a PEM file)
    /// and HEDDLE_TOKEN override what it says.
    #[arg(long, global = true, value_name = "FILE", env = "HEDDLE_CONFIG")]
    config: Option<PathBuf>,
    /// When to colour.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: Color,
}

impl Global {
    /// With the variables that have no flag. A token would show in the process list.
    pub(crate) fn overrides(&self) -> Overrides {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Overrides {
            context: self.context.clone().filter(|name| !name.is_empty()),
            file: self.config.clone().filter(|path| !path.as_os_str().is_empty()),
            address: variable("HEDDLE_ADDRESS"),
            ca: variable("HEDDLE_CA").map(PathBuf::from),
            token: variable("HEDDLE_TOKEN"),
        }
    }
}

/// One of them.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or change objects from files: all of them or, if any is refused, none.
    Apply(ApplyArgs),
    /// Show objects.
    Get(GetArgs),
    /// Show one object, what became of it in the mesh, and what belongs to it.
    Describe(DescribeArgs),
    /// Delete objects: all that are named or, if that is refused, none.
    Delete(DeleteArgs),
    /// Show what `apply` would change.
    Diff(DiffArgs),
    /// Show what a kind or one of its fields is for, with defaults and an example; needs no control plane.
    Explain {
        /// Kind (`services`, `svc`, `hr`, ...), or a field of it: `httproute.spec.rules.matches`.
        #[arg(value_name = "KIND[.FIELD]")]
        what: String,
    },
    /// Go back to an earlier revision of all objects.
    Rollback(RollbackArgs),
    /// Show revisions, one revision's changes, or the difference of two.
    Revisions(RevisionsArgs),
    /// Join tokens, with which proxies get their first certificate.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Revoke the certificates that an identity has, or show what was revoked.
    Revoke {
        /// Whose: ACCOUNT or ACCOUNT.NAMESPACE. Its workloads take no more traffic once their leases have ended, until
        /// they join anew; delete the join tokens that others may have first.
        #[arg(value_name = "ACCOUNT")]
        account: Option<String>,
        #[command(flatten)]
        namespace: Namespace,
        /// Form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// API tokens, with which people and programs use this command.
    #[command(subcommand)]
    ApiToken(ApiTokenCommand),
    /// The mesh's root certificates: replace the one that signs, while traffic goes on.
    #[command(subcommand)]
    Root(RootCommand),
    /// Show the proxies: versions, certificates, who lags behind or rejected something.
    Status(StatusArgs),
    /// Run a command with a sidecar beside it.
    Run(Box<RunArgs>),
    /// Kubernetes: give the pods of manifests a proxy. Prints the manifests; all else in them stays as it is.
    Inject(InjectArgs),
    /// Kubernetes: take off what `inject` put on. Prints the manifests as they were before.
    Uninject(ManifestFiles),
    /// Print the Kubernetes manifests of the control plane, for `kubectl apply -f -`. Applying them again, or those of a
    /// newer version, is safe.
    Install(InstallArgs),
    /// Print what `kubectl delete --ignore-not-found -f -` is to remove of an installation.
    Uninstall(UninstallArgs),
    /// Choose which control plane to talk to.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print this command's version.
    Version {
        /// And the control plane's.
        #[arg(long)]
        server: bool,
    },
}

/// A namespace.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Namespace {
    /// Namespace; default: the context's, else `default`.
    #[arg(short, long, value_name = "NS")]
    pub(crate) namespace: Option<String>,
}

/// Files.
#[derive(Clone, Debug, Args)]
pub(crate) struct Files {
    /// File or folder (with all .yaml, .yml and .json below it); `-` is standard input. May be repeated.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

/// `heddle apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
    /// Let the control plane check everything, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Show what changes.
    #[arg(long)]
    pub(crate) diff: bool,
    /// Wait until every proxy that is concerned has acknowledged the change; fail if one rejects it.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// How long to wait at most.
    #[arg(long, default_value = "30s", value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// `heddle diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
    /// End with 7 when there are differences.
    #[arg(long)]
    pub(crate) exit_code: bool,
}

/// Which objects a command is about.
#[derive(Clone, Debug, Args)]
pub(crate) struct Selection {
    #[command(flatten)]
    pub(crate) namespace: Namespace,
    /// Only objects with these labels: `a=b,c!=d,e in (f,g),!h`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
}

/// `heddle get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Kind (`services`, `svc`, `hr`, ...), several with commas, `all`, or KIND/NAME.
    #[arg(value_name = "KIND")]
    pub(crate) kind: String,
    /// Names.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// In all namespaces.
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "names"])]
    pub(crate) all_namespaces: bool,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    /// Go on with changes as they happen.
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// `heddle describe`.
#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    /// Kind (`services`, `svc`, `hr`, ...) or KIND/NAME.
    #[arg(value_name = "KIND")]
    pub(crate) kind: String,
    /// Name.
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) namespace: Namespace,
}

/// `heddle delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Kind (`services`, `svc`, `hr`, ...) or KIND/NAME.
    #[arg(value_name = "KIND", required_unless_present = "files", conflicts_with = "files")]
    pub(crate) kind: Option<String>,
    /// Names.
    #[arg(value_name = "NAME", conflicts_with = "files")]
    pub(crate) names: Vec<String>,
    /// Delete the objects that are written in these files or folders; `-` is standard input.
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with = "selector")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// All objects of the kind in the namespace.
    #[arg(long, conflicts_with_all = ["names", "files", "selector"])]
    pub(crate) all: bool,
    /// Let the control plane check it, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// An object that is not there is as good as deleted.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

/// Kubernetes manifests.
#[derive(Debug, Args)]
pub(crate) struct ManifestFiles {
    /// Files or folders of YAML or JSON; `-`, and nothing, is standard input.
    #[arg(value_name = "FILE")]
    pub(crate) paths: Vec<PathBuf>,
    /// The same.
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// `heddle inject`.
#[derive(Debug, Args)]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    pub(crate) files: ManifestFiles,
    /// Image of the proxy.
    #[arg(long, value_name = "IMAGE", default_value = heddle_kubernetes::names::PROXY_IMAGE)]
    pub(crate) image: String,
    /// Image of the init container that redirects connections; default: the one that goes with the default of
    /// `--image`, else the proxy's, which then must hold nft or iptables.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) capture_image: Option<String>,
    /// When these images are pulled: Always, IfNotPresent or Never; default: as Kubernetes decides.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(crate) image_pull_policy: Option<String>,
    /// Where proxies send spans (OTLP), such as `http://collector.tracing:4317`; default: nowhere.
    #[arg(long, value_name = "URL")]
    pub(crate) tracing_endpoint: Option<String>,
    /// Control plane as proxies reach it.
    #[arg(long, value_name = "HOST:PORT", default_value = heddle_kubernetes::names::CONTROL_PLANE_ADDRESS)]
    pub(crate) control_plane: String,
    /// The mesh's trust domain.
    #[arg(long, value_name = "NAME", default_value = "heddle.local")]
    pub(crate) trust_domain: String,
    /// File with the mesh's root certificates, PEM; default: those of the context in use.
    #[arg(long, value_name = "FILE")]
    pub(crate) roots: Option<PathBuf>,
}

/// `heddle rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Which revision to go back to; default: one step back, and one further each time again.
    #[arg(long, value_name = "REVISION")]
    pub(crate) to: Option<u64>,
    /// Only if this is the newest revision still; without --to, that is made sure anyway.
    #[arg(long, value_name = "REVISION")]
    pub(crate) if_revision: Option<u64>,
    /// Show what would change, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `heddle revisions`.
#[derive(Debug, Args)]
pub(crate) struct RevisionsArgs {
    /// One revision: what it holds. Two: what differs between them.
    #[arg(value_name = "REVISION", num_args = 0..=2)]
    pub(crate) revisions: Vec<u64>,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// `heddle token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token, bound to one identity.
    Create {
        /// Service account that the proxy will have, usually named like the service it serves.
        #[arg(value_name = "ACCOUNT[.NS]")]
        account: String,
        #[command(flatten)]
        namespace: Namespace,
        /// How long it can be used.
        #[arg(long, default_value = "1h", value_name = "TIME")]
        ttl: Duration,
        /// How many proxies can use it.
        #[arg(long, default_value_t = 1, value_name = "COUNT")]
        uses: u32,
        /// Write the join file here, readable by its owner only; default: standard output.
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show join tokens, without their secrets.
    List {
        /// Form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Make join tokens useless.
    Delete {
        /// As shown by `list`.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

/// What an API token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Everything, tokens included.
    Admin,
    /// Change objects, make join tokens.
    Operator,
    /// Look.
    Viewer,
}

/// `heddle api-token`.
#[derive(Debug, Subcommand)]
pub(crate) enum ApiTokenCommand {
    /// Make an API token; it is shown once.
    Create {
        /// Whose it is, for people.
        name: String,
        /// What it may do.
        #[arg(long, value_enum, default_value = "viewer")]
        role: Role,
        /// Add a context with it to this context file, made if it is not there, readable by its owner only; for use
        /// with HEDDLE_CONFIG. Default: the token alone, on standard output.
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show API tokens, without their secrets.
    List {
        /// Form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Make API tokens useless.
    Delete {
        /// As shown by `list`.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

/// `heddle status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this proxy: NAME, NS/NAME or a part of it.
    #[arg(value_name = "PROXY")]
    pub(crate) proxy: Option<String>,
    /// End with 1 when a proxy is away, takes no traffic, lags behind, has rejected something or has an expired certificate.
    #[arg(long)]
    pub(crate) check: bool,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// `heddle root`. Each step but `status` needs the role admin.
#[derive(Debug, Subcommand)]
pub(crate) enum RootCommand {
    /// Show the roots, how far proxies are, and what is next. Makes the context trust them all.
    Status {
        /// Form of the answer.
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Make a new root, which every proxy trusts from now on.
    Prepare,
    /// Sign under the new root from now on; refused while a proxy has not applied it, or may have a certificate of before `prepare`.
    Activate {
        /// Do it all the same: a proxy that is away and has not applied it can never come back, and needs a new join file.
        #[arg(long)]
        force: bool,
    },
    /// Trust the old root no more; refused until the last certificate of it has ended.
    Retire {
        /// Do it all the same: a proxy with such a certificate is refused everywhere, and needs a new join file.
        #[arg(long)]
        force: bool,
    },
}

/// `heddle context`.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Show the contexts.
    List,
    /// Use this one from now on.
    Use {
        /// As shown by `list`.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent_and_help_names_the_exit_codes() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("125  `run`: the sidecar did not come up"), "{help}");
    }

    fn parses(line: &str) -> bool {
        Cli::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn what_can_be_typed() {
        for good in [
            "heddle apply -f a -f b --dry-run --diff",
            "heddle apply -f - --wait --timeout 5s",
            "heddle get svc",
            "heddle get svc orders -n shop -o yaml",
            "heddle get all -A -l a=b",
            "heddle delete svc a b",
            "heddle delete -f x",
            "heddle delete svc -l a=b",
            "heddle delete svc --all",
            "heddle rollback --to 7 --dry-run",
            "heddle revisions 1 2",
            "heddle token create orders.shop --ttl 10m --uses 3 -o join.json",
            "heddle api-token create ci --role operator",
            "heddle --context a status --context b",
            "heddle completions zsh",
            "heddle explain httproute.spec.rules",
            "heddle root status -o json",
            "heddle revoke",
            "heddle revoke orders.shop",
            "heddle root retire --force",
            "heddle inject",
            "heddle inject a.yaml -f - --image heddle-proxy:1 --roots roots.pem",
            "heddle uninject -f a.yaml",
            "heddle run --service orders.shop --port 80:8080 --upstream payments=9001 -- sh -c true --port",
        ] {
            assert!(parses(good), "{good}");
        }
        for bad in [
            "heddle",
            "heddle apply",
            "heddle apply -f a --dry-run --wait",
            "heddle apply -f a --timeout 5",
            "heddle get",
            "heddle get svc x -A",
            "heddle get svc -n a -A",
            "heddle delete",
            "heddle delete svc -f x",
            "heddle delete svc x --all",
            "heddle token create",
            "heddle revisions 1 2 3",
            "heddle api-token create ci --role root",
            "heddle run --service a --port 0",
            "heddle inject --image-pull-policy Sometimes",
        ] {
            assert!(!parses(bad), "{bad}");
        }
    }
}
