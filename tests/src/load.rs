//! A steady, open-loop load that counts what was lost.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{sync::oneshot, task::JoinSet, time::sleep};

use crate::{
    mesh::{client_builder, reqwest_client},
    netns::Namespace,
};

/// What a load met.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Answered 2xx.
    pub ok: u64,
    /// Everything else, by status and `heddle-error`, or by the client's error.
    pub lost: BTreeMap<String, u64>,
    /// For how long.
    pub time: Duration,
    /// Longest wait for an answer.
    pub slowest: Duration,
}

impl Report {
    /// # Panics
    /// When anything was lost, or fewer than nine tenths of `expected` were sent.
    pub fn assert_nothing_lost(&self, expected: u64) {
        assert!(self.lost.is_empty(), "lost requests: {self:#?}");
        assert!(self.sent * 10 >= expected * 9, "the load itself fell behind: {self:?}, expected {expected}");
    }
}

/// Sends `GET url` at `rate` a second for `time`, each on its own task, through `client`.
pub async fn steady(client: reqwest::Client, url: String, rate: u32, time: Duration) -> Report {
    until(|_| client.get(&url), rate, sleep(time)).await
}

/// Sends requests, by their numbers, at `rate` a second until `end` is ready.
async fn until(request: impl Fn(u64) -> reqwest::RequestBuilder, rate: u32, end: impl Future<Output = ()>) -> Report {
    let report = Arc::new(Mutex::new(Report::default()));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let began = tokio::time::Instant::now();
    let mut tasks = JoinSet::new();
    let mut end = std::pin::pin!(end);
    for number in 0_u64.. {
        tokio::select! {
            biased;
            () = &mut end => break,
            _ = ticks.tick() => {}
        }
        let (request, report) = (request(number), report.clone());
        tasks.spawn(async move {
            let began = tokio::time::Instant::now();
            let outcome = answer(request).await;
            let mut report = report.lock().expect("no panic while held");
            report.sent += 1;
            report.slowest = report.slowest.max(began.elapsed());
            match outcome {
                Ok(()) => report.ok += 1,
                Err(reason) => *report.lost.entry(reason).or_default() += 1,
            }
        });
        while tasks.try_join_next().is_some() {}
    }
    let time = began.elapsed();
    while tasks.join_next().await.is_some() {}
    let mut report = report.lock().expect("no panic while held");
    report.time = time;
    report.clone()
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(), String> {
    match request.timeout(Duration::from_secs(10)).send().await {
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
    }
}

/// A load that an app of a pod sends until it is told to stop.
pub struct PodLoad {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Report>,
}

impl PodLoad {
    /// Begins one of `rate` requests a second, without any proxy that it would know of. One in four is a POST, which is
    /// not sent again if it may have been done, and one in ten ends its connection.
    pub fn start(pod: &Namespace, url: String, rate: u32) -> Self {
        let (stop, stopped) = oneshot::channel();
        let thread = pod.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let client = reqwest_client(client_builder());
                let request = |number: u64| {
                    let post = number % 4 == 3;
                    let request = if post { client.post(&url).body("some words") } else { client.get(&url) };
                    if number.is_multiple_of(10) { request.header("connection", "close") } else { request }
                };
                // Whoever has dropped it wants no more of it either.
                let end = async { drop(stopped.await) };
                until(request, rate, end).await
            })
        });
        Self { stop, thread }
    }

    /// Ends it, and gives what it met.
    ///
    /// # Panics
    /// When it has.
    pub async fn stop(self) -> Report {
        // An error means that it has ended by a panic, which is told below.
        let _ = self.stop.send(());
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        joined.expect("no panic").unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
