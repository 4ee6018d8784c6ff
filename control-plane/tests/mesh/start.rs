use std::{error::Error, os::unix::fs::PermissionsExt, path::Path, time::SystemTime};

use heddle_certs::{Authority, SystemClock};
use heddle_control_plane::{
    app::{Addresses, App, StartError, admin_token},
    config::written::Written,
    tokens::{ApiTokens, Role},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, config, trust_domain};

/// An error with its causes.
fn told(error: &StartError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn refused(folder: &Path, written: Written) -> String {
    match App::start(config(folder, written)).await {
        Ok(_) => panic!("it started"),
        Err(error) => told(&error),
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_first_start_leaves_what_others_need_and_keeps_it_to_itself() {
    let world = World::start().await;
    let data = world.folder.path().join("data");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("authority.json")), 0o600);
    assert_eq!(mode(&world.folder.path().join("context.yaml")), 0o600);
    let addresses: Addresses = serde_json::from_slice(&std::fs::read(data.join("addresses.json")).unwrap()).unwrap();
    assert_eq!(addresses, *world.app.addresses());

    for path in ["/live", "/ready", "/startup"] {
        assert!(get(addresses.health, path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
    assert!(get(addresses.health, "/").await.starts_with("HTTP/1.1 404"));
    let metrics = get(addresses.health, "/metrics").await;
    for metric in
        ["connected_proxies 0", "store_revision", "certificate_expiry_timestamp_seconds{certificate=\"issuer\"}"]
    {
        assert!(metrics.contains(&format!("heddle_control_plane_{metric}")), "{metric} in {metrics}");
    }
}

#[tokio::test]
async fn a_second_start_has_the_same_authority_and_makes_no_second_token() {
    let world = World::start().await;
    let roots = world.roots();
    let context = std::fs::read(world.folder.path().join("context.yaml")).unwrap();
    let svid = world.join("orders").await;
    let world = world.restart().await;
    assert_eq!(world.roots(), roots);
    assert_eq!(std::fs::read(world.folder.path().join("context.yaml")).unwrap(), context);
    world.renew(&svid).await.unwrap();
}

#[tokio::test]
async fn what_others_may_touch_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    App::start(config(folder.path(), Written::default())).await.unwrap().shutdown().await;
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(&data.join("authority.json"), 0o640);
    let error = refused(folder.path(), Written::default()).await;
    assert!(error.contains("authority.json") && error.contains("0640"), "{error}");
    set(&data.join("authority.json"), 0o600);
    set(&data, 0o755);
    let error = refused(folder.path(), Written::default()).await;
    assert!(error.contains("dataDir") && error.contains("0755"), "{error}");
    set(&data, 0o700);
    App::start(config(folder.path(), Written::default())).await.unwrap().shutdown().await;
    std::fs::write(data.join("authority.json"), "{").unwrap();
    let error = refused(folder.path(), Written::default()).await;
    assert!(error.contains("backup"), "{error}");
}

#[tokio::test]
async fn two_do_not_share_a_data_folder_or_a_port() {
    let world = World::start().await;
    let error = refused(world.folder.path(), Written::default()).await;
    assert!(error.contains("in use by another process"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let taken = world.app.addresses().mesh.to_string();
    let error = refused(other.path(), Written { mesh: Some(taken.clone()), ..Written::default() }).await;
    assert!(error.contains("setting mesh") && error.contains(&taken), "{error}");
}

#[tokio::test]
async fn an_authority_from_elsewhere_is_used_and_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let pem = Authority::create(trust_domain(), SystemTime::now()).unwrap().to_pem();
    let write = |name: &str, text: &str, mode| {
        std::fs::write(theirs.join(name), text).unwrap();
        std::fs::set_permissions(theirs.join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let written = || Written { authority_dir: Some(theirs.clone()), ..Written::default() };
    write("roots.pem", &pem.roots_pem, 0o644);
    write("issuer.pem", &pem.issuer_chain_pem, 0o644);
    let error = refused(folder.path(), written()).await;
    assert!(error.contains("issuer.key") && error.contains("cannot be read"), "{error}");
    write("issuer.key", &pem.issuer_key_pem, 0o644);
    let error = refused(folder.path(), written()).await;
    assert!(error.contains("issuer.key") && error.contains("0644"), "{error}");
    write("issuer.key", &pem.issuer_key_pem, 0o400);
    App::start(config(folder.path(), written())).await.unwrap().shutdown().await;
    assert!(!folder.path().join("data/authority.json").exists());

    let other = Authority::create(trust_domain(), SystemTime::now()).unwrap().to_pem();
    std::fs::remove_file(theirs.join("issuer.key")).unwrap();
    write("issuer.key", &other.issuer_key_pem, 0o600);
    let error = refused(folder.path(), written()).await;
    assert!(error.contains("authority"), "{error}");
}

#[tokio::test]
async fn a_new_admin_token_is_made_while_it_does_not_run() {
    let world = World::start().await;
    let path = world.folder.path().join("context.yaml");
    let settings = config(world.folder.path(), Written::default());
    let error = told(&admin_token(&settings, SystemClock::shared()).await.unwrap_err());
    assert!(error.contains("in use by another process"), "{error}");
    let address = world.app.addresses().api;
    let World { folder, app, .. } = world;
    app.shutdown().await;
    let written = admin_token(&settings, SystemClock::shared()).await.unwrap();
    assert_eq!((written.name.as_str(), written.renamed), ("default", Some(("default".into(), "default-1".into()))));
    let context: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(context["contexts"][1]["address"], format!("https://{address}"));
    let app = App::start(settings).await.unwrap();
    let tokens = ApiTokens::new(std::sync::Arc::clone(app.registry().store()));
    for context in context["contexts"].as_array().unwrap() {
        let token = tokens.authenticate(context["token"].as_str().unwrap()).await.unwrap().unwrap();
        assert_eq!(token.role, Role::Admin);
    }
    app.shutdown().await;

    let empty = config(&folder.path().join("elsewhere"), Written::default());
    let error = told(&admin_token(&empty, SystemClock::shared()).await.unwrap_err());
    assert!(error.contains("--data-dir") && error.contains("elsewhere"), "{error}");
}
