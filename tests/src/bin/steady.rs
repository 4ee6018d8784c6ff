//! `steady URL RATE SECONDS`: a steady load from within a pod; what it met, as JSON.

use std::time::Duration;

use heddle_tests::load::steady;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, rate, seconds] = arguments.as_slice() else { anyhow::bail!("write URL RATE SECONDS") };
    // A client's first need of TLS, though it calls plain URLs alone.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let time = Duration::from_secs(seconds.parse()?);
    let client = reqwest::Client::builder().build()?;
    let report = runtime.block_on(steady(client, url.clone(), rate.parse()?, time));
    println!("{}", serde_json::json!({ "sent": report.sent, "ok": report.ok, "lost": report.lost }));
    Ok(())
}
