//! The cluster, and what a person has at hand there: kubectl and the CLI.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, SystemTime},
};

use heddle_tests::{
    peer,
    process::{Process, binary},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tempfile::TempDir;

/// Limits that containers get on a machine which may not raise its own.
const CONTAINERS: &str = r#"
[containers]
default_ulimits = ["nofile=1000:1000","nproc=5000:5000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"#;
const IMAGES: [&str; 4] = ["heddle-proxy", "heddle-capture", "heddle-control-plane", "heddle-shop"];
/// Programs of the image with which tests look out of a pod.
const TOOLS: &str = "
FROM scratch
COPY . /
USER 65534:65534
";
/// The cluster's namespace for its network.
const NETWORK: &str = "/run/netns/heddle-k8s";

/// A cluster with this workspace's images in it. It ends with this.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    /// Programs and state of the cluster.
    home: PathBuf,
    /// Forwards the control plane's API to 127.0.0.1:9700.
    pub(crate) forward: Option<Process>,
    keep: bool,
}

impl World {
    /// Brings the cluster up; `None`, after saying so, where that is not possible.
    pub(crate) fn start() -> Option<Self> {
        for program in ["podman", "runc", "etcd", "nft", "openssl", "busybox", "curl", "tcpdump"] {
            peer::find(program)?;
        }
        let home = match std::env::var_os("HEDDLE_K8S") {
            Some(home) => PathBuf::from(home),
            None => peer::kept("kubernetes-1.36.3/bin/coredns")?.ancestors().nth(2)?.to_path_buf(),
        };
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("containers.conf"), CONTAINERS).expect("a file");
        let keep = std::env::var("HEDDLE_CLUSTER").is_ok_and(|value| value == "keep");
        let world = Self { folder, home, forward: None, keep };
        world.load_images();
        let network = File::open(NETWORK).expect("the cluster's network");
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
        Some(world)
    }

    fn load_images(&self) {
        let bin = binary("heddle").parent().expect("a folder").to_path_buf();
        let archive = self.folder.path().join("images.tar");
        let build = workspace().join("images/build.sh");
        run(self.with_containers(Command::new(build)).arg("--bin").arg(&bin).arg("--save").arg(&archive).args(IMAGES));
        let tools = self.folder.path().join("tools");
        fs::create_dir(&tools).expect("a folder");
        fs::write(self.folder.path().join("Containerfile"), TOOLS).expect("a file");
        run(Command::new("sh").current_dir(&tools).env("STEADY", env!("CARGO_BIN_EXE_steady")).arg("-ec").arg(
            "mkdir -p bin tmp etc/ssl/certs && chmod 1777 tmp && cp -L /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ && cp $(command -v busybox) bin/busybox && cp $(command -v curl) bin/curl
             cp $STEADY bin/steady
             for applet in sh sleep nc wget cat env true seq; do ln -s busybox bin/$applet; done",
        ));
        self.libraries(&tools, "bin/curl bin/steady");
        if !(self.keep && Path::new(NETWORK).exists()) {
            // What an earlier run left, if it was cut off.
            run(&mut self.script(&["down"]));
            run(&mut self.script(&["up"]));
        }
        run(self.script(&["load"]).arg(&archive));
        self.image("localhost/tools:1", &self.folder.path().join("Containerfile"), &tools);
    }

    /// Copies what a program of a folder is linked with to its place there.
    pub(crate) fn libraries(&self, folder: &Path, programs: &str) {
        run(Command::new("sh").current_dir(folder).arg("-ec").arg(format!(
            "ldd {programs} | sed -n 's/.*=> \\(\\/[^ ]*\\) .*/\\1/p; s/^\\t\\(\\/[^ ]*\\) .*/\\1/p' |
             while read -r library; do mkdir -p .$(dirname $library) && cp -L $library .$library; done"
        )));
    }

    /// Makes an image of a folder and loads it into the cluster.
    pub(crate) fn image(&self, name: &str, containerfile: &Path, folder: &Path) {
        let podman = || self.with_containers(Command::new("podman"));
        run(podman().args(["build", "-q", "-t", name, "-f"]).args([containerfile, folder]));
        let archive = self.folder.path().join("image.tar");
        let _ = fs::remove_file(&archive);
        run(podman().args(["save", "-q", "-o"]).arg(&archive).arg(name));
        run(self.script(&["load"]).arg(&archive));
    }

    /// `cluster.sh` with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.script(arguments)
    }

    /// Ends a container's process with SIGKILL.
    pub(crate) fn kill(&self, namespace: &str, pod: &str, container: &str) {
        let statuses = self.json(&format!("-n {namespace} get pod {pod}"))["status"].clone();
        let all = ["initContainerStatuses", "containerStatuses"];
        let all = all.iter().flat_map(|key| statuses[*key].as_array().cloned().unwrap_or_default());
        let id = all.filter(|status| status["name"] == container).find_map(|status| {
            status["containerID"].as_str().map(|id| id.trim_start_matches("containerd://").to_owned())
        });
        let socket = self.state().join("containerd.sock");
        let mut ctr = Command::new(self.home.join("bin/ctr"));
        ctr.arg("-a").arg(socket).args(["-n", "k8s.io", "tasks", "kill", "-s", "KILL", &id.expect("a container")]);
        run(&mut ctr);
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = self.with_containers(Command::new(workspace().join("tests/peers/cluster.sh")));
        command.env("HEDDLE_K8S", &self.home).args(arguments);
        command
    }

    fn with_containers(&self, mut command: Command) -> Command {
        command.env("CONTAINERS_CONF", self.folder.path().join("containers.conf"));
        command
    }

    /// Folder of the cluster's own state: keys, logs, the audit log.
    pub(crate) fn state(&self) -> PathBuf {
        self.home.join("run")
    }

    /// kubectl with an administrator's rights.
    pub(crate) fn kubectl(&self, line: &str) -> String {
        self.try_kubectl(line).unwrap_or_else(|error| panic!("kubectl {line}: {error}"))
    }

    /// As above; what it says on standard error if it fails.
    pub(crate) fn try_kubectl(&self, line: &str) -> Result<String, String> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.kubectl_with(&arguments, "")
    }

    /// As above, with these arguments and something to read.
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        feed(self.script(&["kubectl"]).args(arguments), input)
    }

    /// Applies manifests; what names no namespace goes to this one, if any.
    pub(crate) fn apply(&self, namespace: &str, yaml: &str) -> String {
        let arguments: &[&str] =
            if namespace.is_empty() { &["apply", "-f", "-"] } else { &["-n", namespace, "apply", "-f", "-"] };
        self.kubectl_with(arguments, yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
    }

    /// Applies manifests whose pods get a proxy: from the webhook or, where that is not installed, from `heddle inject`.
    pub(crate) fn apply_meshed(&self, namespace: &str, yaml: &str) -> String {
        if self.try_kubectl("get mutatingwebhookconfiguration heddle-inject").is_ok() {
            return self.apply(namespace, yaml);
        }
        let images = ["--image", "localhost/heddle-proxy:0.1.0", "--capture-image", "localhost/heddle-capture:0.1.0"];
        let injected =
            self.heddle(&[&["inject", "-f", "-", "--image-pull-policy", "IfNotPresent"][..], &images].concat(), yaml);
        self.apply(namespace, &injected.unwrap_or_else(|error| panic!("{error}\n{yaml}")))
    }

    /// An object.
    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("{line} -o json"))).expect("JSON")
    }

    /// The CLI as the mesh's administrator.
    pub(crate) fn heddle(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(binary("heddle"));
        command.env("HEDDLE_CONFIG", self.folder.path().join("context.yaml"));
        command.env("KUBECONFIG", self.state().join("admin.conf")).args(arguments);
        feed(&mut command, input)
    }

    /// Runs a line of shell in a pod's container and returns what it wrote.
    pub(crate) fn sh(&self, namespace: &str, pod: &str, container: &str, line: &str) -> Result<String, String> {
        self.kubectl_with(&["-n", namespace, "exec", pod, "-c", container, "--", "sh", "-c", line], "")
    }

    /// Forwards the API's port of the control plane that there is now, and takes the admin's context from it.
    pub(crate) fn connect(&mut self) {
        self.forward = None;
        let pod = "deploy/heddle-control-plane";
        let context = wait("the admin's context", Duration::from_secs(30), || {
            self.try_kubectl(&format!("-n heddle-system exec {pod} -- heddle-control-plane context"))
        });
        fs::write(self.folder.path().join("context.yaml"), context).expect("a file");
        let forward = self.script(&["kubectl", "-n", "heddle-system", "port-forward", pod, "9700:9700"]);
        self.forward = Some(Process::start("forward", forward, self.folder.path()));
        wait("the control plane's API", Duration::from_secs(30), || self.heddle(&["status"], ""));
    }

    /// Address of the control plane's pod.
    pub(crate) fn control_plane(&self) -> String {
        let pods = "-n heddle-system get pods -l app.kubernetes.io/name=heddle-control-plane";
        self.kubectl(&format!("{pods} --field-selector=status.phase=Running -o jsonpath={{.items[0].status.podIP}}"))
    }

    /// What helps to understand a failure.
    pub(crate) fn show(&self) {
        for line in [
            "get pods -A -o wide",
            "get events -A --sort-by=.lastTimestamp",
            "-n heddle-system logs deploy/heddle-control-plane --tail=60",
        ] {
            println!("--- kubectl {line}\n{}", self.try_kubectl(line).unwrap_or_else(|error| error));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.forward = None;
        if !self.keep {
            let _ = self.script(&["down"]).status();
        }
    }
}

/// The workspace's folder.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// Looks again until there is something; panics with the last failure when `limit` has passed.
pub(crate) fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begin = SystemTime::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if begin.elapsed().unwrap_or_default() > limit => {
                panic!("waited {limit:?} for {what}; last seen: {last}")
            }
            Err(_) => sleep(Duration::from_millis(200)),
        }
    }
}

/// Gives rules to the packet filter of the cluster's network.
pub(crate) fn nft(rules: &str) {
    run(Command::new("nft").arg(rules));
}

fn run(command: &mut Command) -> String {
    feed(command, "").unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn feed(command: &mut Command, input: &str) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    // Whoever does not read it to its end says why.
    let writer = std::thread::spawn(move || _ = stdin.write_all(input.as_bytes()));
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(|error| error.to_string())?;
    let _ = writer.join();
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() { Ok(stdout) } else { Err(format!("{stdout}{}", String::from_utf8_lossy(&stderr))) }
}
