//! A steady, open-loop load that counts what was lost.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinSet;

/// What a load met.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Answered 2xx.
    pub ok: u64,
    /// Everything else, by status and `heddle-error`, or by the client's error.
    pub lost: BTreeMap<String, u64>,
}

impl Report {
    /// # Panics
    /// When anything was lost, or fewer than nine tenths of `expected` were sent.
    pub fn assert_nothing_lost(&self, expected: u64) {
        assert!(self.lost.is_empty(), "lost requests: {self:?}");
        assert!(self.sent * 10 >= expected * 9, "the load itself fell behind: {self:?}, expected {expected}");
    }
}

/// Sends `GET url` at `rate` a second for `time`, each on its own task, through `client`.
pub async fn steady(client: reqwest::Client, url: String, rate: u32, time: Duration) -> Report {
    let report = Arc::new(Mutex::new(Report::default()));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let end = tokio::time::Instant::now() + time;
    let mut tasks = JoinSet::new();
    while tokio::time::Instant::now() < end {
        ticks.tick().await;
        let (client, url, report) = (client.clone(), url.clone(), report.clone());
        tasks.spawn(async move {
            let outcome = match client.get(&url).timeout(Duration::from_secs(10)).send().await {
                Ok(response) if response.status().is_success() => match response.bytes().await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("body: {error:?}")),
                },
                Ok(response) => {
                    let reason = response.headers().get("heddle-error").cloned();
                    let status = response.status();
                    let text = response.text().await.unwrap_or_default();
                    Err(format!("{status} {reason:?} {text}"))
                }
                Err(error) => Err(format!("{error:?}")),
            };
            let mut report = report.lock().expect("no panic while held");
            report.sent += 1;
            match outcome {
                Ok(()) => report.ok += 1,
                Err(reason) => *report.lost.entry(reason).or_default() += 1,
            }
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    let report = report.lock().expect("no panic while held");
    report.clone()
}
