use std::error::Error as _;

use super::*;

async fn of(text: &str) -> Result<Cluster, AccessError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, text).unwrap();
    connect(&Access::Kubeconfig(file)).await
}

#[tokio::test]
async fn a_client_is_made_without_asking_the_api_server() {
    let cluster = of("apiVersion: v1\nkind: Config\ncurrent-context: here\n\
        clusters: [{name: here, cluster: {server: 'https://127.0.0.1:1'}}]\n\
        users: [{name: me, user: {token: secret}}]\n\
        contexts: [{name: here, context: {cluster: here, user: me, namespace: shop}}]\n")
    .await
    .unwrap();
    assert_eq!(cluster.client().default_namespace(), "shop");
}

#[tokio::test]
async fn what_cannot_be_used_is_named() {
    let error = of("current-context: nowhere\nclusters: []\nusers: []\ncontexts: []\n").await.unwrap_err();
    assert!(error.to_string().starts_with("setting kubeconfig: /"), "{error}");
    assert!(error.source().unwrap().to_string().contains("nowhere"), "{error:?}");
    let missing = connect(&Access::Kubeconfig("/no/such/file".into())).await.unwrap_err();
    assert!(missing.to_string().contains("/no/such/file"), "{missing}");
    let outside = connect(&Access::InCluster).await.unwrap_err();
    assert!(outside.to_string().contains("set kubeconfig"), "{outside}");
}
