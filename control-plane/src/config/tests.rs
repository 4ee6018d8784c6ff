use clap::Parser;

use super::{written::Flags, *};

fn read(arguments: &[&str]) -> Result<Config, String> {
    let flags =
        Flags::try_parse_from([&["heddle-control-plane"], arguments].concat()).map_err(|error| error.to_string())?;
    let written = flags.merge().map_err(|error| error.to_string())?;
    Config::new(written, Some("/home/me".into())).map_err(|error| error.to_string())
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.yaml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn without_settings_there_are_defaults() {
    let config = read(&[]).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("heddle-data"));
    let addresses = [config.api, config.mesh, config.health].map(|address| address.to_string());
    assert_eq!(addresses, ["127.0.0.1:9700", "127.0.0.1:9701", "127.0.0.1:9702"]);
    assert_eq!(config.trust_domain.as_str(), "heddle.local");
    assert_eq!((config.svid_ttl, config.lease), (Duration::from_secs(86_400), Duration::from_secs(30)));
    assert_eq!(config.names.dns, ["localhost"]);
    assert_eq!(config.names.ips, ["127.0.0.1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(config.context_file, Some(PathBuf::from("/home/me/.config/heddle/config.yaml")));
    assert_eq!((config.log.as_str(), config.log_format), ("info", Format::Text));
}

#[test]
fn flags_win_over_the_file() {
    let (_folder, path) = file("svidTtl: 1h\nmesh: 127.0.0.1:1\napiNames: [a.example]\nlease: 5s\nlogFormat: json\n");
    let config = read(&["--config", &path, "--svid-ttl", "2s", "--api", "10.0.0.1:0"]).unwrap();
    assert_eq!((config.svid_ttl, config.lease), (Duration::from_secs(2), Duration::from_secs(5)));
    assert_eq!((config.mesh.port(), config.log_format), (1, Format::Json));
    assert_eq!(config.names.dns, ["a.example"]);
    assert_eq!(config.names.ips, ["10.0.0.1".parse::<IpAddr>().unwrap()], "the address that was asked for");
    let named = read(&["--api", "0.0.0.0:9700", "--api-name", "B.example,10.1.1.1", "--api-name", "c"]).unwrap();
    assert_eq!(named.names.dns, ["b.example", "c"]);
    assert_eq!(named.names.ips, ["10.1.1.1".parse::<IpAddr>().unwrap()]);
    let (_folder, empty) = file("\n");
    assert_eq!(read(&["--config", &empty]), read(&[]));
}

#[test]
fn kubernetes_is_off_by_default_and_reached_in_one_way() {
    let access = |arguments: &[&str]| read(arguments).map(|config| config.kubernetes);
    assert_eq!(access(&[]), Ok(None));
    assert_eq!(access(&["--kubernetes"]), Ok(Some(kubernetes::Access::InCluster)));
    assert_eq!(access(&["--kubernetes=false"]), Ok(None));
    assert_eq!(read(&[]).unwrap().cluster_domain, "cluster.local");
    assert_eq!(read(&["--cluster-domain", "K8s.Example"]).unwrap().cluster_domain, "k8s.example");
    let kubeconfig = || PathBuf::from("/a/kubeconfig");
    assert_eq!(access(&["--kubeconfig", "/a/kubeconfig"]), Ok(Some(kubernetes::Access::Kubeconfig(kubeconfig()))));
    let both = access(&["--kubernetes", "--kubeconfig", "/a/kubeconfig"]).unwrap_err();
    assert!(both.contains("setting kubernetes") && both.contains("one of the two"), "{both}");
    let (_folder, path) = file("kubernetes: true\n");
    assert_eq!(access(&["--config", &path]), Ok(Some(kubernetes::Access::InCluster)));
}

#[test]
fn what_cannot_be_meant_is_named_with_what_would_be_right() {
    for (arguments, said) in [
        (["--api", "9700"], r#"setting api: "9700" is no address to listen on; write one such as 127.0.0.1:9700"#),
        (["--mesh", "localhost:9701"], "setting mesh: "),
        (["--health", ""], "setting health: "),
        (["--trust-domain", "Not A Domain"], "setting trustDomain: "),
        (["--svid-ttl", "1d"], r#"setting svidTtl: "1d" is no lifetime of certificates; write 1s to 720h"#),
        (["--svid-ttl", "0s"], "setting svidTtl: "),
        (["--svid-ttl", "721h"], "setting svidTtl: "),
        (["--lease", "10"], "setting lease: "),
        (["--api-name", "a b"], "setting apiNames: "),
        (["--advertise-mesh", "host"], r#"setting advertiseMesh: "host" is no host:port"#),
        (["--advertise-mesh", "host:0"], "setting advertiseMesh: "),
        (["--cluster-domain", "cluster.local."], "setting clusterDomain: "),
        (["--log-format", "xml"], "setting logFormat: "),
        (["--no-such", "x"], "--no-such"),
        (["--config", "/no/such/file"], "settings file /no/such/file: cannot be read"),
    ] {
        let error = read(&arguments).unwrap_err();
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    for (text, said) in [
        ("apiNmae: x\n", "unknown field `apiNmae`"),
        ("lease: [1]\n", "lease"),
        ("- a\n", "settings.yaml"),
        ("lease: 5s\nlease: 6s\n", "duplicate"),
        ("svidTtl: soon\n", "setting svidTtl"),
    ] {
        let (_folder, path) = file(text);
        let error = read(&["--config", &path]).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn the_command_line_is_well_formed() {
    use clap::CommandFactory;
    Flags::command().debug_assert();
}
